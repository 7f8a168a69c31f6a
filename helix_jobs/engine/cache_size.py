"""How many KV blocks to allocate, from a setting or from the memory that is left once the models are loaded."""

from __future__ import annotations

from typing import Final

from helix_jobs.engine.config import DEFAULT_BLOCK_SIZE, CacheConfig
from helix_jobs.errors import InsufficientMemoryError

# Share of free memory for keys and values: activations, logits and the rest of the machine live in what remains.
_SHARE_OF_HOST_MEMORY: Final = 0.4
_SHARE_OF_DEVICE_MEMORY: Final = 0.8
# What steps need is left free even where that is more, but not more than this: seldom is a step the largest possible,
# and one that does not fit is repeated with a smaller batch.
_LARGEST_RESERVE: Final = 0.5
# Where nobody can tell what is free (DirectML).
_UNKNOWN_MEMORY_BYTES: Final = 1 << 30


def choose_cache(
    *,
    block_bytes: int,
    kv_cache_mb: int | None,
    free_bytes: int | None,
    on_host: bool,
    max_batch_size: int,
    max_model_len: int,
    depth: int,
    step_bytes: int = 0,
    block_size: int = DEFAULT_BLOCK_SIZE,
) -> CacheConfig:
    """Choose the pool's size.

    More than every batch slot at the full context length is never useful, so that is the upper bound.

    Args:
        block_bytes: Bytes of one block over all layers of both models.
        kv_cache_mb: HELIX_KV_CACHE_MB; None sizes by free memory.
        free_bytes: Free memory on the device; None if unknown.
        on_host: The device's memory is the machine's own.
        max_batch_size: Batch slots.
        max_model_len: Context length in tokens.
        depth: Draft tokens a sequence may hold beyond its end.
        step_bytes: What the largest step takes beside weights and cache.
        block_size: Tokens a block.

    Raises:
        InsufficientMemoryError: Not even one sequence of a few blocks fits.
    """
    if kv_cache_mb is not None:
        budget = kv_cache_mb * 1_000_000
    elif free_bytes is None:
        budget = _UNKNOWN_MEMORY_BYTES
    elif on_host:
        budget = int(free_bytes * _SHARE_OF_HOST_MEMORY)
    else:
        left = max(free_bytes - step_bytes, int(free_bytes * _LARGEST_RESERVE))
        budget = min(left, int(free_bytes * _SHARE_OF_DEVICE_MEMORY))
    useful = max_batch_size * -(-(max_model_len + depth + 1) // block_size)
    num_blocks = min(useful, budget // block_bytes)
    smallest = -(-(2 * block_size + depth) // block_size)
    if num_blocks < smallest:
        remedy = "raise HELIX_KV_CACHE_MB" if kv_cache_mb is not None else "free memory or use a smaller model"
        raise InsufficientMemoryError(
            f"{budget / 1e6:.0f} MB hold {budget // block_bytes} KV blocks of {block_bytes / 1e6:.1f} MB, and the "
            f"smallest useful cache has {smallest}; {remedy}"
        )
    return CacheConfig(num_blocks=num_blocks, block_size=block_size)
