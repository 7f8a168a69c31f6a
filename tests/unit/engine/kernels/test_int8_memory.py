"""What int8 models hold beside compiled kernels, against what is reckoned from their configuration alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from helix_jobs.engine.config import CacheConfig, EngineConfig, SpeculationConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.kernels.cpu.build import compiles_kernels
from helix_jobs.engine.kernels.cpu.int8_decoder import NativeInt8Decoder
from helix_jobs.engine.loading import sizing
from helix_jobs.engine.loading.model_pair import ModelPair
from helix_jobs.engine.loading.model_sizes import model_sizes
from helix_jobs.engine.loading.weight_format import WeightFormat
from helix_jobs.engine.model.families.registry import describe
from helix_jobs.engine.weights import int8_linear
from helix_jobs.settings import Settings
from tests.unit.engine.held_tensors import held_bytes
from tests.unit.engine.kernels.native_models import HEAD_DIM, compiled_decoder, compiled_models
from tests.unit.engine.tiny_models import ARCHITECTURES, CPU, tiny_config

if TYPE_CHECKING:
    from pathlib import Path

DTYPE = torch.float32
INT8 = WeightFormat(DTYPE, is_int8=True)
WITH_HEAD_DIM = [one for one in ARCHITECTURES if one not in ("gpt2", "gpt_neox")]
# What compiled code for small steps does not compute, or computes after all.
CASES = [
    *((architecture, {}) for architecture in (*WITH_HEAD_DIM, "mixtral", "minicpm3", "gemma4_text", "olmo2")),
    ("llama", {"hidden_act": "gelu"}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
]


@pytest.fixture(params=[True, False], ids=["packed", "in rows"])
def _packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of processors: those where oneDNN packs int8 weights, and those where it does not."""
    if request.param and not int8_linear.packs_int8():
        pytest.skip("oneDNN packs no int8 weights here")
    for module in ("weights.int8_linear", "kernels.cpu.int8_decoder", "loading.model_sizes"):
        monkeypatch.setattr(f"helix_jobs.engine.{module}.packs_int8", lambda: request.param)


@pytest.mark.parametrize(("architecture", "overrides"), CASES)
def test_a_description_tells_whether_small_steps_are_compiled(
    compiled_folder: Path, architecture: str, overrides: dict[str, object]
) -> None:
    decoder = compiled_decoder(compiled_folder, DTYPE, int8=True, architecture=architecture, **overrides)
    if decoder.native is None or not decoder.native.has_byte_products:
        pytest.skip("this processor multiplies no bytes")
    described = NativeInt8Decoder.describes(describe(tiny_config(architecture, head_dim=HEAD_DIM, **overrides)))
    assert described is (decoder.small_steps is not None)


@pytest.mark.usefixtures("_packed")
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_an_int8_model_takes_what_it_holds(compiled_folder: Path, architecture: str) -> None:
    decoder = compiled_decoder(compiled_folder, DTYPE, int8=True, architecture=architecture)
    assert decoder.small_steps is not None
    sizes = model_sizes("m", tiny_config(architecture, head_dim=HEAD_DIM))
    pair = ModelPair(CPU, sizes, compiles=True)
    decoder.pack()
    held = held_bytes(decoder)
    assert pair.memory(INT8).weights == held
    linears = sum(linear.nbytes for linear in decoder.linears())
    assert linears + decoder.small_steps.nbytes == held - sizes.int8_bytes(DTYPE) + sizes.int8_products_bytes
    assert ModelPair(CPU, sizes).memory(INT8).weights < held
    as_copy = ModelPair(CPU, sizes, wants_int8_copy=True, compiles=True).memory(WeightFormat(DTYPE))
    assert as_copy.draft == linears + decoder.small_steps.nbytes
    assert as_copy.needed == as_copy.loaded + as_copy.smallest_cache


@pytest.mark.usefixtures("_packed")
def test_the_cache_leaves_room_for_rows_that_packing_adds(
    compiled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = compiled_models(compiled_folder, DTYPE)
    assert models.draft is not None
    assert models.draft.decoder.small_steps is not None
    added = models.draft.decoder.small_steps.nbytes
    config = EngineConfig(speculation=SpeculationConfig())
    monkeypatch.setattr(sizing, "free_memory", lambda _: 3_000_000)
    chosen = sizing.cache_config(models, config, None)
    assert sizing.batch_limits(models, Settings.from_environment({})).max_batch_size > 0
    monkeypatch.setattr(sizing, "free_memory", lambda _: 3_000_000 - added)
    slow = replace(models, draft=replace(models.draft, decoder=replace(models.draft.decoder, small_steps=None)))
    assert sizing.cache_config(slow, config, None) == chosen
    Engine(models, config, CacheConfig(num_blocks=8))  # packs
    assert held_bytes(models.draft.decoder) >= added


def test_kernels_are_compiled_on_a_cpu_with_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiles_kernels(CPU, "auto")
    assert not compiles_kernels(CPU, "off")
    assert not compiles_kernels(torch.device("cuda", 0), "auto")
    monkeypatch.setattr("helix_jobs.engine.kernels.cpu.build.shutil.which", lambda _: None)
    assert not compiles_kernels(CPU, "auto")
