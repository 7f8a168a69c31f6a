"""ModelPair: target and draft on a device, and the memory that they take there in each format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.attention.stored_rows import stored_dtype
from helix_jobs.engine.cache_sections import ONE_SECTION, CacheSections
from helix_jobs.engine.config import DEFAULT_BLOCK_SIZE, DEFAULT_MAX_DEPTH, StateConfig
from helix_jobs.engine.loading.weight_format import formats_for
from helix_jobs.engine.model.layer_sections import block_bytes, divide
from helix_jobs.engine.recurrence.state_cache import state_bytes
from helix_jobs.engine.weights.linear import packs

if TYPE_CHECKING:
    import torch

    from helix_jobs.engine.loading.model_sizes import ModelSizes
    from helix_jobs.engine.loading.weight_format import WeightFormat

# The smallest KV cache worth starting with: one sequence of this many tokens.
SMALLEST_CONTEXT: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PairMemory:
    """What target and draft take on their device, in bytes.

    Attributes:
        weights: The target's weights once it is loaded.
        draft: The draft's weights once it is loaded, beyond those that it shares with the target.
        adapters: The target's adapters.
        loading: The most weights that are in memory at once while models are loaded.
        cache_per_token: Keys and values of a token, in all layers of both models, as long as no window has passed it.
        sections: The sections of both models' layers.
        smallest_tokens: Tokens of the smallest cache worth starting with.
        smallest_states: Recurrent states of both models with one batch slot; 0 without recurrent layers.
    """

    weights: int
    draft: int
    loading: int
    cache_per_token: int
    smallest_tokens: int
    smallest_states: int = 0
    adapters: int = 0
    sections: CacheSections = ONE_SECTION

    @property
    def block_bytes(self) -> int:
        """Bytes of one cache block, of one section."""
        return self.cache_per_token * DEFAULT_BLOCK_SIZE // len(self.sections.windows)

    @property
    def loaded(self) -> int:
        """Weights of both models and of the adapters once they are loaded."""
        return self.weights + self.draft + self.adapters

    @property
    def smallest_cache(self) -> int:
        """Keys, values and states of the shortest context worth starting with."""
        return self.cache_per_token * self.smallest_tokens + self.smallest_states

    @property
    def needed(self) -> int:
        """The memory that a worker cannot start without."""
        return max(self.loading, self.loaded + self.smallest_cache)


@dataclass(frozen=True, slots=True)
class ModelPair:
    """Target and draft on a device.

    Attributes:
        device: Where both compute.
        target: The target model.
        draft: A draft model, or None.
        wants_int8_copy: Whether an int8 copy of the target drafts, where one is made.
        compiles: Whether kernels are compiled for int8 layers.
        copies_blocks: Whether a copy is made of a target in blocks, see ``DraftSpec``.
        adapter_numbers: Numbers of the target's adapters, as they are stacked.
        kv_cache_dtype: HELIX_KV_CACHE_DTYPE.
    """

    device: torch.device
    target: ModelSizes
    draft: ModelSizes | None = None
    wants_int8_copy: bool = False
    compiles: bool = False
    copies_blocks: bool = True
    adapter_numbers: int = 0
    kv_cache_dtype: str = "auto"

    @property
    def has_draft(self) -> bool:
        """Whether a model may draft."""
        return self.draft is not None or self.wants_int8_copy

    def without_draft(self) -> ModelPair:
        """The target alone."""
        return replace(self, draft=None, wants_int8_copy=False)

    def memory(self, chosen: WeightFormat) -> PairMemory:
        """What the models take when the target is in this format; a draft's activations have the same dtype.

        The loader's refusal, ``helix doctor`` and ``helix models`` all take their figures from here.
        """
        target, dtype = self.target, chosen.dtype
        # Weights are read in the dtype that they compute in, or in the blocks that a CPU keeps; int8 ones are made from
        # those.
        keeps_blocks = self.device.type == "cpu" and (chosen.is_packed or chosen.is_int8)
        keeps_all = chosen.is_int8 and self._keeps_all_blocks(target)
        read = target.packed_bytes(dtype, packs=False) if keeps_blocks else target.dense_bytes(dtype, packs=False)
        if chosen.is_packed or keeps_all:
            # An int8 head is never the embedding itself, unless both are blocks.
            weights, loading = target.packed_bytes(dtype, packs=keeps_all or packs(dtype, self.device)), read
        elif chosen.is_int8:
            weights = target.int8_bytes(dtype) + self._kernel_bytes(target)
            loading = read + target.int8_products_bytes
        else:
            weights, loading = target.dense_bytes(dtype, packs=packs(dtype, self.device)), read
        drafts, drafting = 0, self.draft
        if self.draft is not None:
            drafts, drafts_read = self.draft.dense_bytes(dtype, packs=False), self.draft.dense_bytes(dtype, packs=False)
            if self.device.type == "cpu":
                drafts_read = self.draft.packed_bytes(dtype, packs=False)
                if self._keeps_all_blocks(self.draft):
                    drafts = self.draft.packed_bytes(dtype, packs=True)
                else:
                    drafts_read += self.draft.int8_products_bytes
                    drafts = self.draft.int8_bytes(dtype) + self._kernel_bytes(self.draft)
            # Products are laid out anew once both models are there.
            loading = max(
                loading, (target.int8_bytes(dtype) if chosen.is_int8 and not keeps_all else read) + drafts_read
            )
        elif self._has_int8_copy(chosen):
            drafting = target
            # A copy of blocks shares them.
            if not (chosen.is_packed and self._keeps_all_blocks(target)):
                drafts = target.int8_products_bytes + self._kernel_bytes(target)
        adapters = self.adapter_numbers * dtype.itemsize
        both = [target] if drafting is None else [target, drafting]
        sections = divide([(one.geometry, one.windows) for one in both], min(one.context for one in both), self.device)
        layers = (sections.target, sections.draft)
        stored = stored_dtype(self.kv_cache_dtype, dtype)
        cache = sum(
            block_bytes(one.geometry, own, 1, stored) * len(sections.windows)
            for one, own in zip(both, layers, strict=False)
        )
        return PairMemory(
            weights=weights,
            draft=drafts,
            adapters=adapters,
            # Adapters are read first, and wait in the machine's memory: as large as on the device, or twice as large.
            loading=max(loading, weights + drafts) + (2 * adapters if self.device.type in ("cpu", "mps") else adapters),
            cache_per_token=cache,
            smallest_tokens=min(SMALLEST_CONTEXT, target.context),
            smallest_states=self.state_bytes(chosen, StateConfig(num_slots=1, num_drafts=DEFAULT_MAX_DEPTH)),
            sections=sections,
        )

    def _has_int8_copy(self, chosen: WeightFormat) -> bool:
        return self.wants_int8_copy and makes_int8_copy(self.device, chosen, copies_blocks=self.copies_blocks)

    def _keeps_all_blocks(self, model: ModelSizes) -> bool:
        """Whether a model's int8 form keeps its blocks, see ``quantize``.

        Trade-off: matrices in no blocks are reckoned in the activations' type, of which int8 takes a half or a quarter;
        and where bytes multiply some blocks only, all are reckoned as int8 rows.
        """
        return self.compiles and self.device.type == "cpu" and model.blocks.has_bytes

    def _kernel_bytes(self, model: ModelSizes) -> int:
        """What compiled kernels hold beside a model's int8 layers once these are packed."""
        return model.int8_kernel_bytes if self.compiles else 0

    def state_bytes(self, chosen: WeightFormat, config: StateConfig) -> int:
        """Bytes of the recurrent states of both models, each with a cache of this size."""
        shapes = self.target.states
        if self.draft is not None:
            shapes += self.draft.states
        elif self._has_int8_copy(chosen):
            shapes *= 2
        return state_bytes(shapes, config, chosen.dtype.itemsize)

    def remedies(self, chosen: WeightFormat, stored: torch.dtype | None, available: int) -> list[str]:
        """Options that make the models fit: no draft, another format, or both; each by itself, small changes first.

        Args:
            chosen: The format that does not fit.
            stored: The dtype of the checkpoint's weights, or None.
            available: Free bytes on the device.
        """
        alone = self.without_draft()
        found = []
        if self.has_draft and alone.memory(chosen).needed <= available:
            found.append("--draft none")
        for other in formats_for(self.device, stored, has_blocks=self.target.blocks.weights > 0):
            if other != chosen and self.memory(other).needed <= available:
                found.append(f"--dtype {other.name}")
            elif other != chosen and self.has_draft and alone.memory(other).needed <= available:
                found.append(f"--dtype {other.name} --draft none")
        return found


def makes_int8_copy(device: torch.device, chosen: WeightFormat, *, copies_blocks: bool) -> bool:
    """Whether the draft ``int8`` makes a copy of the target there; elsewhere it is left out."""
    return device.type == "cpu" and not chosen.is_int8 and (copies_blocks or not chosen.is_packed)
