"""What loading a large file adds to a process, beyond what a tiny model of the same form adds."""

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
from tests.unit.engine.model_files import edit_config, save_checkpoint, write_random_gguf
from tests.unit.engine.tiny_models import tiny_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")

# Loads a tiny model, which imports everything, and then the large one; prints bytes of memory added.
CHILD = """
import json, sys
from pathlib import Path
import torch
from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loading.model_loader import load_models

tiny, large, dtype = sys.argv[1:]

# (The peak that getrusage tells counts what a parent had before it started this program.)
def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def engine(model):
    models = load_models(model, "none", device=torch.device("cpu"), dtype=dtype, home=Path(tiny).parent)
    config = EngineConfig(max_batch_size=2, speculation=SpeculationConfig(depth=0))
    return Engine(models, config, CacheConfig(num_blocks=64))

engine(tiny)
before = memory("VmRSS")
made = engine(large)
found = {"held": memory("VmRSS") - before, "peak": memory("VmHWM") - before, "cache": made.info.kv_cache_bytes}
print(json.dumps(found))
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
    """A form of weights, the setting that keeps it, and the layers that make a large file of it."""

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


def words(*shape: int) -> torch.Tensor:
    """Eight numbers of four bits in each."""
    return torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int32)


def gptq(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    if weight.dim() < 2 or "embed" in name or "lm_head" in name:
        return plain(name, weight)
    (rows, columns), module = weight.shape, name.removesuffix("weight")
    return {
        f"{module}qweight": words(columns // 8, rows),
        f"{module}qzeros": torch.full((columns // GROUP, rows // 8), 0x77777777, dtype=torch.int32),
        f"{module}scales": torch.full((columns // GROUP, rows), 1e-3, dtype=torch.float16),
        f"{module}g_idx": (torch.arange(columns) // GROUP).to(torch.int32),
    }


def awq(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    if weight.dim() < 2 or "embed" in name or "lm_head" in name:
        return plain(name, weight)
    (rows, columns), module = weight.shape, name.removesuffix("weight")
    return {
        f"{module}qweight": words(columns, rows // 8),
        f"{module}qzeros": words(columns // GROUP, rows // 8),
        f"{module}scales": torch.full((columns // GROUP, rows), 1e-3, dtype=torch.float16),
    }


GROUP = 128
_FOUR_BITS = {"bits": 4, "group_size": GROUP}
FORMS = {
    "bfloat16": Form("bfloat16", 12, {}, plain),
    "blocks of FP8": Form(
        "packed", 24, {"quantization_config": {"quant_method": "fp8", "weight_block_size": None}}, fp8
    ),
    "GPTQ": Form(
        "packed",
        44,
        {"quantization_config": {"quant_method": "gptq", **_FOUR_BITS, "desc_act": False, "sym": True}},
        gptq,
    ),
    "AWQ": Form(
        "packed",
        44,
        {"quantization_config": {"quant_method": "awq", **_FOUR_BITS, "zero_point": True, "version": "gemm"}},
        awq,
    ),
}
TINY = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
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


def check(tmp_path: Path, tiny: Path, large: Path, dtype: str, size: int) -> None:
    """Held are file and cache and at most 15 % more, and at most 1.3 times the file at any moment of loading."""
    command = [sys.executable, "-c", CHILD, str(tiny), str(large), dtype]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["held"] <= 1.15 * size + found["cache"]
    assert found["peak"] <= 1.3 * size + found["cache"]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_model_takes_the_memory_of_its_file(tmp_path: Path, form: str) -> None:
    own = FORMS[form]
    write(tmp_path / "tiny", own, **TINY)
    size = write(tmp_path / "large", own, num_hidden_layers=own.num_layers, **LARGE)
    assert size > 10**9
    check(tmp_path, tmp_path / "tiny", tmp_path / "large", own.dtype, size)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "num_layers"),
    [("Q4_K", 16), pytest.param("Q8_0", 9, marks=pytest.mark.slow), pytest.param("Q6_K", 12, marks=pytest.mark.slow)],
)
def test_a_gguf_file_takes_its_own_memory(tmp_path: Path, kind: str, num_layers: int) -> None:
    write_random_gguf(tmp_path / "tiny.gguf", kind, **TINY)
    write_random_gguf(tmp_path / "large.gguf", kind, num_hidden_layers=num_layers, **LARGE)
    size = (tmp_path / "large.gguf").stat().st_size
    assert size > 400 * 10**6
    check(tmp_path, tmp_path / "tiny.gguf", tmp_path / "large.gguf", "packed", size)
