"""What fits: the reckoned cache is the one that loading makes, and the remedies are those that help."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from helix_jobs.engine.config import EngineConfig, SpeculationConfig, StateConfig
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loading import sizing
from helix_jobs.engine.loading.model_fit import fit
from helix_jobs.engine.loading.model_pair import ModelPair
from helix_jobs.engine.loading.model_sizes import model_sizes
from helix_jobs.engine.loading.weight_format import WeightFormat, format_of, formats_for
from helix_jobs.engine.model.assembly import build_decoder
from helix_jobs.engine.model.quantize import quantize
from helix_jobs.settings import Settings
from tests.unit.engine.held_tensors import held_bytes
from tests.unit.engine.tiny_models import CPU, RECURRENT, copy_of, loaded, tiny_config, tiny_model

if TYPE_CHECKING:
    from helix_jobs.engine.loading.model_sizes import ModelSizes

FLOAT32 = WeightFormat(torch.float32)
INT8 = WeightFormat(torch.float32, is_int8=True)
CUDA = torch.device("cuda", 0)
SETTINGS = Settings.from_environment({})


def sizes_of(**overrides: int) -> ModelSizes:
    return model_sizes("m", tiny_config("llama", **overrides))


@pytest.mark.parametrize("architecture", ["llama", *RECURRENT])
@pytest.mark.parametrize("draft", ["none", "int8"])
def test_the_cache_is_the_one_that_a_worker_makes(
    monkeypatch: pytest.MonkeyPatch, draft: str, architecture: str
) -> None:
    models = loaded(tiny_model(architecture), draft)
    pair = ModelPair(CPU, model_sizes("m", tiny_config(architecture)), wants_int8_copy=draft == "int8")
    memory = pair.memory(FLOAT32)
    free = 3_000_000
    reckoned = fit(pair, FLOAT32, SETTINGS, 100, free)
    monkeypatch.setattr(sizing, "free_memory", lambda _: free - memory.loaded)
    slots = sizing.batch_limits(models, SETTINGS).max_batch_size
    config = EngineConfig(max_batch_size=slots, speculation=SpeculationConfig())
    assert sizing.cache_config(models, config, None).num_blocks == reckoned.cache_tokens // 16
    assert reckoned.fits
    assert reckoned.sequences == reckoned.cache_tokens // 100 > 0


def test_a_cache_that_is_set_is_taken_as_it_is() -> None:
    reckoned = fit(ModelPair(CPU, sizes_of()), FLOAT32, replace(SETTINGS, kv_cache_mb=1), 100, 10**9)
    assert reckoned.cache_bytes == 1_000_000
    assert reckoned.cache_tokens == 1_000_000 // (256 * 16) * 16  # 256 bytes a token


@pytest.mark.parametrize("draft", ["none", "int8"])
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float16, 128 / 68), (torch.bfloat16, 128 / 68), (torch.float32, 256 / 68)], ids=str
)
def test_a_cache_of_8_bits_holds_twice_as_many_tokens_as_one_of_16(dtype: torch.dtype, most: float, draft: str) -> None:
    """Heads of 64: a row of 128 or 256 bytes becomes one of 64, and a scale of 4."""
    pair = ModelPair(CPU, sizes_of(head_dim=64), wants_int8_copy=draft == "int8")
    small = replace(pair, kv_cache_dtype="int8")
    chosen, settings = WeightFormat(dtype), replace(SETTINGS, kv_cache_mb=64)
    plain, more = (fit(one, chosen, settings, 100, 10**9) for one in (pair, small))
    assert plain.memory.cache_per_token == pytest.approx(most * more.memory.cache_per_token)
    assert more.cache_tokens == pytest.approx(most * plain.cache_tokens, rel=0.01)


def test_a_cache_of_8_bits_is_reckoned_as_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    models = loaded(
        tiny_model("gemma2", layer_types=["sliding_attention", "full_attention"], sliding_window=20), "int8"
    )
    config = EngineConfig(max_batch_size=256, speculation=SpeculationConfig())
    monkeypatch.setattr(sizing, "free_memory", lambda _: 10**7)
    plain, small = (sizing.cache_config(models, config, None, dtype) for dtype in ("auto", "int8"))
    # Heads of 8: rows of 32 bytes become rows of 12.
    assert small.num_blocks == pytest.approx(plain.num_blocks * 32 / 12, rel=0.01)
    with closing(Engine(models, config, small)) as engine:
        assert engine.info.kv_cache_bytes == pytest.approx(0.4 * 10**7, rel=0.01)
        assert engine.info.kv_cache_dtype == "int8"


@pytest.mark.parametrize("architecture", RECURRENT)
def test_states_are_reckoned_as_those_of_the_loaded_model(architecture: str) -> None:
    models = loaded(tiny_model(architecture), "int8")
    assert models.draft is not None
    pair = ModelPair(CPU, model_sizes("m", tiny_config(architecture)), wants_int8_copy=True)
    config = StateConfig(num_slots=5, num_snapshots=3, num_drafts=4)
    decoders = (models.target.decoder, models.draft.decoder)
    assert pair.state_bytes(FLOAT32, config) == sum(one.state_bytes(config) for one in decoders) > 0
    assert pair.memory(FLOAT32).smallest_states > pair.without_draft().memory(FLOAT32).smallest_states > 0


@pytest.mark.parametrize(("free", "fits"), [(10**9, True), (10_000, False), (None, None)])
def test_whether_it_fits(free: int | None, *, fits: bool | None) -> None:
    reckoned = fit(ModelPair(CPU, sizes_of()), FLOAT32, SETTINGS, 100, free)
    assert reckoned.fits is fits
    assert (reckoned.cache_tokens == 0) is (fits is False)


def test_a_step_leaves_its_room_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helix_jobs.engine.loading.model_fit.total_memory", lambda _: 8 * 10**9)
    pair = ModelPair(CUDA, sizes_of())
    left = 4 * 10**8
    step = pair.target.step_widths(torch.float32, CUDA).step_bytes(EngineConfig(), 256)
    assert left // 5 < step < left // 2
    reckoned = fit(pair, FLOAT32, SETTINGS, 100, left + pair.memory(FLOAT32).loaded)
    assert reckoned.cache_bytes == left - step


def test_what_a_pair_takes_is_what_its_decoders_hold() -> None:
    target, small = tiny_model(), tiny_model(hidden_size=24, num_attention_heads=3, num_key_value_heads=1)
    decoder, draft = build_decoder(copy_of(target)), build_decoder(copy_of(small))
    pair = ModelPair(CPU, sizes_of(), model_sizes("d", small.config))
    memory = pair.memory(FLOAT32)
    assert memory.weights == held_bytes(decoder)
    assert memory.draft == held_bytes(quantize(draft))
    # Its layers are made int8 while the draft is there as it was read; embedding and norms are shared.
    made = sum(linear.nbytes for linear in quantize(draft).linears())
    assert memory.loading == held_bytes(decoder) + held_bytes(draft) + made
    assert memory.cache_per_token == decoder.geometry.block_bytes(1, torch.float32) + draft.geometry.block_bytes(
        1, torch.float32
    )
    alone = pair.without_draft().memory(INT8)
    assert alone.weights == held_bytes(quantize(decoder))
    assert alone.loading == held_bytes(decoder) + sum(linear.nbytes for linear in quantize(decoder).linears())


def test_an_int8_copy_shares_embedding_and_norms() -> None:
    decoder = build_decoder(copy_of(tiny_model()))
    memory = ModelPair(CPU, sizes_of(), wants_int8_copy=True).memory(FLOAT32)
    assert memory.draft == sum(linear.nbytes for linear in quantize(decoder).linears())
    assert memory.cache_per_token == 2 * decoder.geometry.block_bytes(1, torch.float32)
    # None is made of an int8 target, or on another device.
    assert ModelPair(CPU, sizes_of(), wants_int8_copy=True).memory(INT8).draft == 0
    assert ModelPair(CUDA, sizes_of(), wants_int8_copy=True).memory(FLOAT32).draft == 0


def test_remedies_are_options_that_fit_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helix_jobs.engine.loading.weight_format.resolve_dtype", lambda *_: torch.float32)
    pair = ModelPair(CPU, sizes_of(), wants_int8_copy=True)
    with_draft, alone, int8 = pair.memory(FLOAT32), pair.without_draft().memory(FLOAT32), pair.memory(INT8)
    assert int8.needed < alone.needed < with_draft.needed
    assert pair.remedies(FLOAT32, torch.float32, alone.needed) == ["--draft none", "--dtype int8"]
    assert pair.remedies(FLOAT32, torch.float32, alone.needed - 1) == ["--dtype int8"]
    assert pair.remedies(FLOAT32, torch.float32, int8.needed - 1) == []


def test_a_format_may_need_the_draft_dropped_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helix_jobs.engine.loading.weight_format.resolve_dtype", lambda *_: torch.float32)
    pair = ModelPair(CPU, sizes_of(), sizes_of(num_hidden_layers=8))
    available = pair.without_draft().memory(INT8).needed
    assert pair.memory(INT8).needed > available
    assert pair.remedies(FLOAT32, torch.float32, available) == ["--dtype int8 --draft none"]


def test_formats_begin_with_that_of_auto() -> None:
    formats = formats_for(CPU, torch.float32)
    assert formats[0] == FLOAT32 == format_of("auto", CPU, torch.float32)
    assert formats[-1] == INT8 == format_of("int8", CPU, torch.float32)
    assert [one.name for one in (formats[0], formats[-1])] == ["float32", "int8"]
    assert not any(one.is_int8 for one in formats_for(torch.device("privateuseone", 0), torch.bfloat16))
