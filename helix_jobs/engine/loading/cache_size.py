"""How many KV blocks to allocate, from a setting or from the memory that is left once the models are loaded."""

from __future__ import annotations

from typing import Final

from helix_jobs.engine.cache_sections import ONE_SECTION, CacheSections
from helix_jobs.engine.config import DEFAULT_BLOCK_SIZE, DEFAULT_SNAPSHOTS, CacheConfig
from helix_jobs.errors import InsufficientMemoryError
from helix_jobs.wording import data_size, rough_size

# Part of free memory for keys and values: activations, logits and the rest of the machine use the remainder.
_SHARE_OF_HOST_MEMORY: Final = 0.4
_SHARE_OF_DEVICE_MEMORY: Final = 0.8
# A step's needs are left free even if they exceed that remainder, but at most this part of free memory. Few steps are
# the largest possible, and a step that does not fit is repeated with a smaller batch.
_LARGEST_RESERVE: Final = 0.5
# Part of the memory for a cache that recurrent states may take unless the user sets the batch slots. Trade-off: more
# slots compute more at once, and leave each fewer keys and values.
_SHARE_OF_STATES: Final = 0.2
# Part of the pool for states that requests may begin with.
_SHARE_OF_SNAPSHOTS: Final = 0.1
# Where free memory is unknown (DirectML), take this much, or more if the card is known to be large.
_UNKNOWN_MEMORY_BYTES: Final = 1 << 30
# Part of a card's memory that the desktop and other programs leave free.
_SHARE_OF_CARD: Final = 0.9
# Tokens of an ordinary job, prompt and answer.
_USUAL_TOKENS: Final = 1024


def cache_bytes_beside(used_bytes: int, card_bytes: int | None, *, token_bytes: int, max_batch_size: int) -> int:
    """Choose the pool's bytes on a device that tells the size of its memory, but not how much is free.

    Trade-off: a write may cost a copy of the whole pool there, so the pool holds a full batch of ordinary jobs instead
    of all that would fit. HELIX_KV_CACHE_MB can ask for more.

    Args:
        used_bytes: Weights of target and draft, and the memory of the largest step.
        card_bytes: The card's memory; None if unknown.
        token_bytes: Keys and values of a token over all layers of both models.
        max_batch_size: Batch slots.
    """
    if card_bytes is None:
        return _UNKNOWN_MEMORY_BYTES
    room = int((card_bytes * _SHARE_OF_CARD - used_bytes) * _SHARE_OF_DEVICE_MEMORY)
    return max(_UNKNOWN_MEMORY_BYTES, min(room, max_batch_size * _USUAL_TOKENS * token_bytes))


def cache_budget(
    kv_cache_mb: int | None, free_bytes: int | None, unknown_bytes: int, step_bytes: int, *, on_host: bool
) -> int:
    """Choose the most bytes that the pool may take; the arguments are those of ``choose_cache``."""
    if kv_cache_mb is not None:
        return kv_cache_mb * 1_000_000
    if free_bytes is None:
        return unknown_bytes
    if on_host:
        return int(free_bytes * _SHARE_OF_HOST_MEMORY)
    left = max(free_bytes - step_bytes, int(free_bytes * _LARGEST_RESERVE))
    return min(left, int(free_bytes * _SHARE_OF_DEVICE_MEMORY))


def slots_for_states(max_batch_size: int, cache_bytes: int | None, slot_bytes: int) -> int:
    """Choose the batch slots where recurrent states take memory from the cache, at least 1.

    Args:
        max_batch_size: Batch slots without states.
        cache_bytes: Memory for the cache, states included; None if unknown.
        slot_bytes: Recurrent states of one batch slot, of both models; 0 without recurrent layers.
    """
    if cache_bytes is None or not slot_bytes:
        return max_batch_size
    return min(max_batch_size, max(1, int(cache_bytes * _SHARE_OF_STATES) // slot_bytes))


def beside_states(budget: int, state_bytes: int, snapshot_bytes: int) -> tuple[int, int]:
    """Choose the number of snapshots; return it and the bytes left for keys and values.

    Args:
        budget: Bytes of the whole pool.
        state_bytes: As in ``choose_cache``.
        snapshot_bytes: As in ``choose_cache``.
    """
    num_snapshots = min(DEFAULT_SNAPSHOTS, int(budget * _SHARE_OF_SNAPSHOTS) // snapshot_bytes) if snapshot_bytes else 0
    return num_snapshots, max(0, budget - state_bytes - num_snapshots * snapshot_bytes)


def choose_cache(
    *,
    block_bytes: int,
    kv_cache_mb: int | None,
    free_bytes: int | None,
    unknown_bytes: int = _UNKNOWN_MEMORY_BYTES,
    on_host: bool,
    max_batch_size: int,
    max_model_len: int,
    depth: int,
    step_bytes: int = 0,
    state_bytes: int = 0,
    snapshot_bytes: int = 0,
    block_size: int = DEFAULT_BLOCK_SIZE,
    sections: CacheSections = ONE_SECTION,
    step_tokens: int = 1,
) -> CacheConfig:
    """Choose the pool's size.

    The upper bound is every batch slot at the full context length.

    Args:
        block_bytes: Bytes of one block over a section's layers in both models.
        kv_cache_mb: HELIX_KV_CACHE_MB; None sizes by free memory.
        free_bytes: Free memory on the device; None if unknown.
        unknown_bytes: Size of the pool if free memory is unknown; see ``cache_bytes_beside``.
        on_host: Whether the device's memory is the machine's own.
        max_batch_size: Batch slots.
        max_model_len: Context length in tokens.
        depth: Draft tokens a sequence may hold beyond its end.
        step_bytes: Memory of the largest step beside weights and cache.
        state_bytes: Recurrent states of all batch slots, of both models; they are part of the pool's size.
        snapshot_bytes: One further state of the target.
        block_size: Tokens a block.
        sections: The sections of both models.
        step_tokens: The most tokens of one sequence that one step computes.

    Raises:
        InsufficientMemoryError: Not even one sequence of a few blocks fits.
    """
    budget = cache_budget(kv_cache_mb, free_bytes, unknown_bytes, step_bytes, on_host=on_host)
    num_snapshots, budget = beside_states(budget, state_bytes, snapshot_bytes)
    useful = max_batch_size * sections.most_blocks(max_model_len + depth + 1, step_tokens, block_size)
    num_blocks = min(useful, budget // block_bytes)
    smallest = -(-(2 * block_size + depth) // block_size) * len(sections.windows)
    if num_blocks < smallest:
        remedy = "raise HELIX_KV_CACHE_MB" if kv_cache_mb is not None else "free memory or use a smaller model"
        if state_bytes:
            remedy += f", or lower HELIX_MAX_BATCH_SIZE, whose states take {rough_size(state_bytes)}"
        raise InsufficientMemoryError(
            f"{rough_size(budget)} hold {budget // block_bytes} KV blocks of {data_size(block_bytes)}, and the "
            f"smallest useful cache has {smallest}; {remedy}"
        )
    return CacheConfig(num_blocks=num_blocks, block_size=block_size, num_snapshots=num_snapshots)
