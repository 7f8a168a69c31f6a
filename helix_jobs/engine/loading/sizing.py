"""How much loaded models can run at once on their device: batch slots, prompt tokens a step, KV blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.attention.stored_rows import stored_dtype
from helix_jobs.engine.config import (
    DEFAULT_BLOCK_SIZE,
    DEFAULT_MAX_DEPTH,
    NO_STATES,
    BatchLimits,
    StateConfig,
    defaults_for,
)
from helix_jobs.engine.devices.devices import free_memory, total_memory
from helix_jobs.engine.loading.cache_size import cache_bytes_beside, choose_cache, slots_for_states
from helix_jobs.engine.model.layer_sections import block_bytes, sections_of
from helix_jobs.engine.model.step_memory import step_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.cache_sections import CacheSections
    from helix_jobs.engine.config import CacheConfig, EngineConfig
    from helix_jobs.engine.loaded_models import LoadedModels
    from helix_jobs.engine.model.decoder import Decoder
    from helix_jobs.settings import Settings


def cache_config(
    models: LoadedModels, config: EngineConfig, kv_cache_mb: int | None, kv_cache_dtype: str = "auto"
) -> CacheConfig:
    """Size the block pool for these models on their device.

    Args:
        models: Loaded models.
        config: The engine's limits.
        kv_cache_mb: HELIX_KV_CACHE_MB; None sizes by free memory.
        kv_cache_dtype: HELIX_KV_CACHE_DTYPE.

    Raises:
        InsufficientMemoryError: Not even one sequence of a few blocks fits.
    """
    decoders, target = _decoders(models), models.target.decoder
    device = models.device
    free_bytes = _free_memory(models)
    sections = _sections(models)
    one_block = _block_bytes(models, sections, kv_cache_dtype)
    step_tokens = config.step_tokens
    max_keys = models.max_context
    if free_bytes is not None:
        max_keys = min(max_keys, sections.capacity(max(1, free_bytes // one_block), step_tokens, DEFAULT_BLOCK_SIZE))
    largest_step = max(step_bytes(one, config, max_keys) for one in decoders)
    cache = choose_cache(
        block_bytes=one_block,
        sections=sections,
        step_tokens=step_tokens,
        kv_cache_mb=kv_cache_mb,
        free_bytes=free_bytes,
        unknown_bytes=cache_bytes_beside(
            largest_step
            + sum(one.table_bytes + sum(linear.nbytes for linear in one.linears()) for one in decoders)
            + _unpacked_bytes(models),
            total_memory(device) if free_bytes is None else None,
            token_bytes=_token_bytes(one_block, sections),
            max_batch_size=config.max_batch_size,
        ),
        on_host=device.type in ("cpu", "mps"),
        max_batch_size=config.max_batch_size,
        max_model_len=models.max_context,
        depth=config.speculation.ceiling,
        step_bytes=largest_step,
        state_bytes=_state_bytes(decoders, config.max_batch_size, config.speculation.ceiling),
        snapshot_bytes=target.state_bytes(StateConfig(num_slots=0, num_snapshots=1)) - target.state_bytes(NO_STATES),
    )
    return replace(cache, dtype=kv_cache_dtype)


def batch_limits(models: LoadedModels, settings: Settings) -> BatchLimits:
    """Batch slots and token budget: as set, or the best for these models on this device."""
    cache_bytes = None if settings.kv_cache_mb is None else settings.kv_cache_mb * 1_000_000
    if cache_bytes is None:
        cache_bytes = _free_memory(models)
    decoders = _decoders(models)
    sections = _sections(models)
    token_bytes = _token_bytes(_block_bytes(models, sections, settings.kv_cache_dtype), sections)
    usual = defaults_for(
        models.device.type,
        total_memory(models.device),
        cache_tokens=None if cache_bytes is None else cache_bytes // token_bytes,
    )
    slot_bytes = _state_bytes(decoders, 1, DEFAULT_MAX_DEPTH) - _state_bytes(decoders, 0, DEFAULT_MAX_DEPTH)
    slots = slots_for_states(usual.max_batch_size, cache_bytes, slot_bytes)
    return BatchLimits(
        max_batch_size=settings.max_batch_size or slots,
        token_budget=settings.token_budget or usual.token_budget,
    )


def _free_memory(models: LoadedModels) -> int | None:
    """Free memory on the device, less what the models will take when they are packed."""
    free = free_memory(models.device)
    return None if free is None else max(0, free - _unpacked_bytes(models))


def _unpacked_bytes(models: LoadedModels) -> int:
    """What packing will add: int8 rows of a decoder's small steps, which it shares with the layers until then."""
    return sum(one.small_steps.nbytes for one in _decoders(models) if one.small_steps is not None)


def _decoders(models: LoadedModels) -> list[Decoder]:
    return [one.decoder for one in (models.target, models.draft) if one is not None]


def _state_bytes(decoders: Sequence[Decoder], num_slots: int, num_drafts: int) -> int:
    """Bytes of the recurrent states of all models, snapshots aside."""
    config = StateConfig(num_slots=num_slots, num_drafts=num_drafts)
    return sum(one.state_bytes(config) for one in decoders)


def _sections(models: LoadedModels) -> CacheSections:
    return sections_of(
        models.target.decoder, None if models.draft is None else models.draft.decoder, models.max_context
    )


def _block_bytes(models: LoadedModels, sections: CacheSections, kv_cache_dtype: str) -> int:
    """Bytes of one block in all models."""
    return sum(
        block_bytes(decoder.geometry, layers, DEFAULT_BLOCK_SIZE, stored_dtype(kv_cache_dtype, decoder.dtype))
        for decoder, layers in zip(_decoders(models), (sections.target, sections.draft), strict=False)
    )


def _token_bytes(one_block: int, sections: CacheSections) -> int:
    """Bytes of a token of an ordinary job, of which no window has cut anything yet."""
    return one_block * len(sections.windows) // DEFAULT_BLOCK_SIZE
