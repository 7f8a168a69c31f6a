"""What loading a file of a gigabyte adds to a process, beyond what a tiny model of the same form adds."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from helix_jobs.engine.loading.model_sizes import skeleton
from tests.unit.engine.model_files import edit_config, save_checkpoint
from tests.unit.engine.tiny_models import tiny_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc"),
]

CACHE_BLOCKS = 64
# Loads a tiny model, which imports everything, and then the large one; prints bytes of memory added.
CHILD = """
import json, resource, sys
from pathlib import Path
import torch
from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loading.model_loader import load_models

tiny, large, dtype = sys.argv[1:]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def engine(folder):
    models = load_models(folder, "none", device=torch.device("cpu"), dtype=dtype, home=Path(folder))
    config = EngineConfig(max_batch_size=2, speculation=SpeculationConfig(depth=0))
    return Engine(models, config, CacheConfig(num_blocks=64))

engine(tiny)
before = resident()
made = engine(large)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"held": resident() - before, "peak": peak - before, "cache": made.info.kv_cache_bytes}))
"""
LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Form:
    """A form of weights, the setting that keeps it, and the layers that make a gigabyte of it."""

    dtype: str
    num_layers: int
    settings: dict[str, Any]
    parts: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]


def plain(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: torch.empty(weight.shape, dtype=torch.bfloat16).normal_(0.0, 0.02)}


def fp8(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    if weight.dim() < 2 or "embed" in name or "lm_head" in name:
        return plain(name, weight)
    codes = torch.randint(0, 120, weight.shape, dtype=torch.uint8)
    return {name: codes.view(torch.float8_e4m3fn), f"{name}_scale_inv": torch.tensor(1e-3)}


FORMS = {
    "bfloat16": Form("bfloat16", 12, {}, plain),
    "blocks of FP8": Form(
        "packed", 24, {"quantization_config": {"quant_method": "fp8", "weight_block_size": None}}, fp8
    ),
}


def write(folder: Path, form: Form, **settings: Any) -> int:
    """Write a model of random weights; return the bytes of its file."""
    config = tiny_config("llama", **settings)
    save_checkpoint(folder)
    changes = {key: value for key, value in config.to_dict().items() if key in settings}
    edit_config(folder, **changes, **form.settings)
    weights: dict[str, torch.Tensor] = {}
    for name, weight in skeleton("m", config).state_dict().items():
        weights |= form.parts(name, weight)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("form", FORMS)
def test_a_model_takes_the_memory_of_its_file(tmp_path: Path, form: str) -> None:
    """Held are file and cache and at most 15 % more, and at most 1.3 times the file at any moment of loading."""
    own = FORMS[form]
    write(tmp_path / "tiny", own, hidden_size=64, intermediate_size=64, num_attention_heads=4, num_key_value_heads=4)
    size = write(tmp_path / "large", own, num_hidden_layers=own.num_layers, **LARGE)
    assert size > 10**9
    command = [sys.executable, "-c", CHILD, str(tmp_path / "tiny"), str(tmp_path / "large"), own.dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["held"] <= 1.15 * size + found["cache"]
    assert found["peak"] <= 1.3 * size + found["cache"]
