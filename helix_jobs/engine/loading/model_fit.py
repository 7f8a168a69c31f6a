"""Fit: how a pair of models in one format fits into the memory of a device, reckoned as the loader reckons it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helix_jobs.engine.config import (
    DEFAULT_BLOCK_SIZE,
    NO_STATES,
    EngineConfig,
    SpeculationConfig,
    StateConfig,
    defaults_for,
)
from helix_jobs.engine.devices.devices import total_memory
from helix_jobs.engine.loading.cache_size import beside_states, cache_budget, cache_bytes_beside, slots_for_states

if TYPE_CHECKING:
    from helix_jobs.engine.loading.model_pair import ModelPair, PairMemory
    from helix_jobs.engine.loading.weight_format import WeightFormat
    from helix_jobs.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One format of a model on one device.

    Attributes:
        chosen: The format.
        memory: What the models take.
        fits: Whether a worker would start; None if the device does not tell how much memory is free (DirectML).
        cache_bytes: The largest cache that a worker would make beside the models, recurrent states included.
        cache_tokens: Tokens that this cache holds, in sequences of ``context`` tokens.
        context: The length of a whole sequence, in tokens.
        max_batch_size: Batch slots that a worker would have.
    """

    chosen: WeightFormat
    memory: PairMemory
    fits: bool | None
    cache_bytes: int
    cache_tokens: int
    context: int
    max_batch_size: int

    @property
    def sequences(self) -> int:
        """Whole sequences that the cache holds at once."""
        return self.cache_tokens // self.context


def fit(pair: ModelPair, chosen: WeightFormat, settings: Settings, context: int, available: int | None) -> Fit:
    """Reckon the cache that is left beside the models.

    Args:
        pair: Target and draft on their device.
        chosen: The target's format.
        settings: A worker's; the cache and the batch as they are set there.
        context: Tokens of a sequence, prompt and output together.
        available: Free bytes on the device before anything is loaded; None if it does not tell.
    """
    device, memory = pair.device, pair.memory(chosen)
    total = total_memory(device)
    left = None if available is None else max(0, available - memory.loaded)
    usual = defaults_for(device.type, total, None if left is None else left // memory.cache_per_token)
    whole = left if settings.kv_cache_mb is None else settings.kv_cache_mb * 1_000_000
    slot = memory.smallest_states - pair.state_bytes(chosen, NO_STATES)
    slots = slots_for_states(usual.max_batch_size, whole, slot)
    depth = settings.speculation_depth
    config = EngineConfig(
        max_batch_size=settings.max_batch_size or slots,
        token_budget=settings.token_budget or usual.token_budget,
        speculation=SpeculationConfig() if depth is None else SpeculationConfig(depth=depth, adaptive=False),
    )
    sections, max_keys = memory.sections, pair.target.context
    if left is not None:
        most = sections.capacity(max(1, left // memory.block_bytes), config.step_tokens, DEFAULT_BLOCK_SIZE)
        max_keys = min(max_keys, most)
    sizes = [pair.target, *([pair.draft] if pair.draft is not None else [])]
    step = max(one.step_widths(chosen.dtype, device).step_bytes(config, max_keys) for one in sizes)
    unknown = cache_bytes_beside(
        step + memory.loaded,
        total if available is None else None,
        token_bytes=memory.cache_per_token,
        max_batch_size=config.max_batch_size,
    )
    fits = None if available is None else memory.needed <= available
    budget = (
        0
        if fits is False
        else cache_budget(settings.kv_cache_mb, left, unknown, step, on_host=device.type in ("cpu", "mps"))
    )
    states = pair.state_bytes(
        chosen, StateConfig(num_slots=config.max_batch_size, num_drafts=config.speculation.ceiling)
    )
    alone = pair.without_draft()
    snapshot = alone.state_bytes(chosen, StateConfig(num_slots=0, num_snapshots=1)) - alone.state_bytes(
        chosen, NO_STATES
    )
    _, for_tokens = beside_states(budget, states, snapshot)
    whole = -(-context // DEFAULT_BLOCK_SIZE)
    held = sections.most_blocks(context, config.step_tokens, DEFAULT_BLOCK_SIZE)
    # In whole sequences, as windows free more of long ones.
    num_blocks = for_tokens // memory.block_bytes * whole // held
    return Fit(
        chosen=chosen,
        memory=memory,
        fits=fits,
        cache_bytes=budget,
        cache_tokens=num_blocks * DEFAULT_BLOCK_SIZE,
        context=context,
        max_batch_size=config.max_batch_size,
    )
