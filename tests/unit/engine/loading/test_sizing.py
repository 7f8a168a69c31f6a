"""How many slots, prompt tokens and blocks a device gets by default."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helix_jobs.engine.config import BatchLimits, EngineConfig, SpeculationConfig, StateConfig, defaults_for
from helix_jobs.engine.engine import Engine
from helix_jobs.engine.loading import sizing
from helix_jobs.engine.loading.cache_size import cache_bytes_beside
from helix_jobs.errors import InsufficientMemoryError
from helix_jobs.settings import Settings
from tests.unit.engine.opened_engine import opened
from tests.unit.engine.tiny_models import RECURRENT, loaded, tiny_model

GIB = 1 << 30
GB = 1_000_000_000
NARROW = BatchLimits(32, 1024)


@pytest.mark.parametrize(
    ("device_type", "total", "cache_tokens", "expected"),
    [
        ("cuda", 141 * GB, 900_000, BatchLimits(256, 4096)),
        ("cuda", 12 * GB, None, BatchLimits(256, 4096)),
        ("xpu", 16 * GB, 200_000, BatchLimits(256, 4096)),
        ("cuda", 24 * GB, 60_000, BatchLimits(64, 4096)),  # 8B in bfloat16
        ("cuda", 16 * GB, 500, BatchLimits(32, 4096)),
        ("cuda", 8 * GB, 900_000, NARROW),
        ("cuda", None, None, NARROW),
        ("privateuseone", 24 * GB, None, NARROW),
        ("mps", 48 * GB, 900_000, NARROW),
        ("cpu", None, 900_000, NARROW),
    ],
)
def test_defaults_by_device(
    device_type: str, total: int | None, cache_tokens: int | None, expected: BatchLimits
) -> None:
    assert defaults_for(device_type, total, cache_tokens) == expected


def test_settings_go_before_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    models = loaded(tiny_model())
    monkeypatch.setattr(sizing, "total_memory", lambda _: 100 * GB)
    monkeypatch.setattr(sizing, "free_memory", lambda _: 80 * GB)
    object.__setattr__(models.target.decoder, "device", torch.device("cuda", 0))
    settings = Settings.from_environment({})
    assert sizing.batch_limits(models, settings) == BatchLimits(256, 4096)
    assert sizing.batch_limits(models, replace(settings, max_batch_size=7)) == BatchLimits(7, 4096)
    assert sizing.batch_limits(models, replace(settings, token_budget=99)) == BatchLimits(256, 99)
    # A small cache asked for has no room for so many: 2 layers, 2 heads of 8 in float32 are 256 bytes a token.
    assert sizing.batch_limits(models, replace(settings, kv_cache_mb=17)).max_batch_size == 128


@pytest.mark.parametrize(
    ("used", "card", "expected"),
    [
        (16 * GIB, None, GIB),
        (16 * GIB, 24 * GIB, 4 * GIB),  # a full batch of 1024 tokens each, 128 KiB a token
        (19 * GIB, 24 * GIB, int((24 * 0.9 - 19) * 0.8 * GIB)),
        (2 * GIB, GIB // 2, GIB),  # a processor's own graphics: the rest is the machine's memory
    ],
)
def test_a_card_that_only_tells_its_size_holds_a_batch_of_ordinary_jobs(
    used: int, card: int | None, expected: int
) -> None:
    chosen = cache_bytes_beside(used, card, token_bytes=128 * 1024, max_batch_size=32)
    assert chosen == pytest.approx(expected, abs=2)


def test_the_cache_of_a_directml_card_is_sized_by_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    models = loaded(tiny_model())
    config = EngineConfig(max_batch_size=4096, speculation=SpeculationConfig(depth=0))
    monkeypatch.setattr(sizing, "free_memory", lambda _: None)
    monkeypatch.setattr(sizing, "total_memory", lambda _: 24 * GIB)
    monkeypatch.setattr(sizing, "cache_bytes_beside", lambda used, card, **_: (card == 24 * GIB and used > 0) * 10**7)
    assert sizing.cache_config(models, config, None).num_blocks == 10**7 // (256 * 16)


@pytest.mark.parametrize("family", RECURRENT)
def test_states_are_part_of_the_cache(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setattr(sizing, "free_memory", lambda _: 10**9)
    models = loaded(tiny_model(family), "int8")
    config = EngineConfig(max_batch_size=4, speculation=SpeculationConfig(depth=3, adaptive=False))
    for megabytes in (1, 2):
        cache = sizing.cache_config(models, config, megabytes)
        engine = Engine(models, config, cache)
        assert 0 < cache.num_snapshots <= 64
        assert engine.info.kv_cache_bytes <= megabytes * 1_000_000
        states = opened(engine).target.states
        assert states is not None
        assert states.num_bytes > 0
        engine.close()


def test_a_batch_whose_states_do_not_fit_is_refused() -> None:
    models = loaded(tiny_model("qwen3_5_text"))
    with pytest.raises(InsufficientMemoryError, match="or lower HELIX_MAX_BATCH_SIZE, whose states take 15 MB"):
        sizing.cache_config(models, EngineConfig(max_batch_size=1000), 1)


def test_batch_slots_leave_room_for_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    models = loaded(tiny_model("qwen3_5_text"))
    two, one = (models.target.decoder.state_bytes(StateConfig(num_slots=slots, num_drafts=8)) for slots in (2, 1))
    slot = two - one
    monkeypatch.setattr(sizing, "free_memory", lambda _: 100 * slot)
    assert sizing.batch_limits(models, Settings.from_environment({})).max_batch_size == 20
    asked = replace(Settings.from_environment({}), max_batch_size=50)
    assert sizing.batch_limits(models, asked).max_batch_size == 50
