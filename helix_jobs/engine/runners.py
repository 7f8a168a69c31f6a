"""Runners: target and draft with their caches, and the pools that say who holds which part of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helix_jobs.engine.config import StateConfig
from helix_jobs.engine.devices.devices import explaining_shortage
from helix_jobs.engine.model.layer_sections import sections_of
from helix_jobs.engine.model.runner import ModelRunner
from helix_jobs.engine.schedule.block_pool import BlockPool
from helix_jobs.engine.schedule.state_pool import StatePool

if TYPE_CHECKING:
    from helix_jobs.engine.config import CacheConfig, EngineConfig
    from helix_jobs.engine.loaded_models import LoadedModels


@dataclass(frozen=True, slots=True)
class Runners:
    """The models of one engine with all memory that its sequences share.

    Attributes:
        target: The target model.
        draft: The draft model; None without one, and where speculation is off.
        blocks: The blocks of both models' keys and values.
        states: The target's recurrent states; None for a model without them.
        draft_states: The draft's.
    """

    target: ModelRunner
    draft: ModelRunner | None
    blocks: BlockPool
    states: StatePool | None
    draft_states: StatePool | None

    @property
    def cache_bytes(self) -> int:
        """Bytes of both models' caches."""
        return self.target.cache_bytes + (0 if self.draft is None else self.draft.cache_bytes)

    @classmethod
    def allocate(cls, models: LoadedModels, config: EngineConfig, cache: CacheConfig) -> Runners:
        """Allocate the caches of an engine.

        Raises:
            InsufficientMemoryError: They do not fit.
        """
        draft_model = models.draft if config.speculation.is_on else None
        draft_decoder = None if draft_model is None else draft_model.decoder
        decoders = [models.target.decoder, *([] if draft_decoder is None else [draft_decoder])]
        # Batch slots take memory of recurrent states, and none of keys and values.
        has_states = any(decoder.recurrences for decoder in decoders)
        remedy = "lower HELIX_KV_CACHE_MB" + (" or HELIX_MAX_BATCH_SIZE" if has_states else "")
        slots, num_drafts = config.max_batch_size, config.speculation.ceiling
        state_config = StateConfig(num_slots=slots, num_snapshots=cache.num_snapshots, num_drafts=num_drafts)
        draft_state_config = StateConfig(num_slots=slots, num_drafts=num_drafts)
        draft = None
        with explaining_shortage(models.device, "the KV cache was allocated", remedy):
            sections = sections_of(models.target.decoder, draft_decoder, models.max_context)
            target = ModelRunner(models.target.decoder, cache, state_config, sections.of_target)
            if draft_decoder is not None:
                draft = ModelRunner(draft_decoder, cache, draft_state_config, sections.of_draft)
        blocks = BlockPool(
            cache.num_blocks,
            cache.block_size,
            sections,
            step_tokens=config.step_tokens,
            draft_keeps_up=draft is not None and not config.speculation.adaptive,
        )
        states = StatePool(state_config) if target.states is not None else None
        has_draft_states = draft is not None and draft.states is not None
        return cls(target, draft, blocks, states, StatePool(draft_state_config) if has_draft_states else None)
