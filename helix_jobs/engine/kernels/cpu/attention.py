"""CompiledAttention: compiled kernels attend straight from the cache, without gathering."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.engine.attention.heads import StepHeads, before_rotation
from helix_jobs.engine.attention.step_plan import PackedSlices, num_blocks_of
from helix_jobs.engine.cache_sections import first_seen
from helix_jobs.engine.kernels.cpu.kernels import NativeKernels

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from helix_jobs.engine.attention.backend import AttentionSpec, LayerAttention
    from helix_jobs.engine.attention.kv_cache import PagedKVCache
    from helix_jobs.engine.attention.step_layout import StepLayout, TokenSlice
    from helix_jobs.engine.attention.step_plan import SharedTensors, StepPlan

# Queries of a slice attended for at once: the scores of a longer piece would not stay in the processor's caches.
_QUERY_LENGTH: Final = 16
# As in attention.h: kernels skip what a window hides in multiples of this many keys, and of whole blocks.
_SKIPPED_KEYS: Final = 64


@dataclass(frozen=True, slots=True)
class DirectSlices:
    """Slices, cut into short pieces, as compiled kernels read them (satisfies ``AttentionPlan`` too: all on the CPU).

    Attributes:
        pieces: ``[num_pieces, 4]`` int64: first token, number of tokens, start position among the keys in ``blocks``,
            first entry in ``blocks``.
        blocks: The slices' block tables one after another, int32.
    """

    pieces: torch.Tensor
    blocks: torch.Tensor

    @classmethod
    def of(
        cls,
        slices: Sequence[TokenSlice],
        offsets: Sequence[int],
        block_size: int,
        section: int = 0,
        window: int | None = None,
    ) -> DirectSlices:
        """Cut slices up.

        Args:
            slices: The slices.
            offsets: Where each of them starts in the packed row.
            block_size: Tokens a block.
            section: The section of layers to plan for.
            window: Keys that its queries see at most; None for all. What comes before is left out, in the numbers in
                which the kernels skip it, so that they compute the same as if it were there.
        """
        pieces: list[tuple[int, int, int, int]] = []
        blocks: list[int] = []
        unit = lcm(block_size, _SKIPPED_KEYS)
        for first_token, part in zip(offsets, slices, strict=True):
            left_out = 0 if window is None else max(0, part.start + 1 - window) // unit * unit
            for done in range(0, part.num_tokens, _QUERY_LENGTH):
                num_tokens = min(_QUERY_LENGTH, part.num_tokens - done)
                pieces.append((first_token + done, num_tokens, part.start + done - left_out, len(blocks)))
            table, end = part.table(section), num_blocks_of(part.start + part.num_tokens, block_size)
            first = first_seen(window, part.start, block_size)
            # Nothing that is weighed lies in blocks before the first one that is seen.
            blocks.extend([table[first]] * (first - left_out // block_size))
            blocks.extend(table[first:end])
        return cls(torch.tensor(pieces, dtype=torch.int64), torch.tensor(blocks, dtype=torch.int32))

    def arrays(self) -> list[NDArray[np.int64]]:
        """None: the CPU needs no upload."""
        return []

    def on_device(self, _uploaded: Iterator[torch.Tensor], _shared: SharedTensors) -> DirectSlices:
        """Itself."""
        return self


class CompiledAttention:
    """Solves every query straight from the cache (satisfies ``AttentionBackend``)."""

    kernels = NativeKernels.name
    is_independent = True
    # The features of layers that it computes; see ``features_of``.
    SERVED: Final = frozenset(
        {
            *("query_norm", "key_norm", "norm_scope", "rotary", "window", "score_cap", "clip", "query_factor"),
            *("sinks", "source", "value_norm", "has_values_of_keys"),
        }
    )

    def __init__(self, spec: AttentionSpec, native: NativeKernels) -> None:
        assert self.serves(spec), "the kernels do not compute all features of these layers"
        assert spec.geometry.head_dims == (native.head_dim,), "kernels are compiled for one size of heads"
        self.spec = spec
        self.native = native

    @classmethod
    def serves(cls, spec: AttentionSpec) -> bool:
        """Whether the kernels compute this model's attention."""
        return spec.features <= cls.SERVED

    def plan(
        self, slices: Sequence[TokenSlice], cache: PagedKVCache, least_tokens: int = 0, section: int = 0
    ) -> StepPlan:
        """See ``AttentionBackend``. Slices stay in their order, and nothing is padded."""
        del least_tokens
        window, order = cache.sections.windows[section], range(len(slices))
        packed = PackedSlices.of(slices, order, cache.geometry, cache.block_size, section=section, window=window)
        return packed.planned(DirectSlices.of(slices, packed.offsets, cache.block_size, section, window))

    def begin(self, layout: StepLayout, cache: PagedKVCache) -> CompiledStep:
        """See ``AttentionBackend``."""
        return CompiledStep(self.spec, self.native, layout, cache)


class CompiledStep:
    """One step of ``CompiledAttention`` (satisfies ``AttentionStep``). Keeps every tensor that it has pointers into."""

    def __init__(self, spec: AttentionSpec, native: NativeKernels, layout: StepLayout, cache: PagedKVCache) -> None:
        assert isinstance(layout.attention, DirectSlices), "the step was planned for another backend"
        slices = layout.attention
        self._spec = spec
        self._cache = cache
        self._rotate_and_store, self._paged_attention = native.paged(has_scales=cache.has_scales)
        # Key-value heads -> rows of the cache in which the step's tokens are written.
        self._write_rows = {count: rows.data_ptr() for count, rows in layout.write_rows.items()}
        # Layer -> the tokens' rows of its cosines and signed sines, these, and the width that the kernel rotates.
        # Nothing is rotated there in layers without rotation, and in those that do more to rotated heads: ``heads``
        # prepares these.
        rotary = [None if _needs_heads(own) else own.rotary for own in spec.layers]
        tables = {table: table.tables(layout.num_positions) for table in spec.rotaries}
        pointers = {
            table: (table.rows(layout).data_ptr(), cos.data_ptr(), sin.data_ptr(), cos.shape[-1])
            for table, (cos, sin) in tables.items()
        }
        unrotated = (layout.positions.data_ptr(), None, None, 0)
        self._rotary = [unrotated if table is None else pointers[table] for table in rotary]
        self._heads = StepHeads(spec, layout) if any(map(_needs_heads, spec.layers)) else None
        self._kept = (layout, tables)
        self._slices = (slices.pieces.data_ptr(), slices.blocks.data_ptr())
        self._num_pieces = len(slices.pieces)
        self._num_tokens = layout.num_tokens

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See ``AttentionStep``."""
        own, shape, num_heads = self._spec.layers[layer], self._spec.geometry.layers[layer], self._spec.num_heads
        heads = self._prepared(layer, qkv)
        qkv = (torch.cat(heads, dim=1) if isinstance(heads, tuple) else heads).contiguous()
        pool = [one.data_ptr() for one in self._cache.pools_of(layer)]
        # each: [T, num_heads * head_dim]
        queries = qkv.new_empty((len(qkv), num_heads * shape.head_dim))
        output = torch.empty_like(queries)
        rows, cos, sin, rotary_dim = self._rotary[layer]
        self._rotate_and_store(
            qkv.data_ptr(), rows, self._write_rows[shape.num_kv_heads], cos, sin, queries.data_ptr(), *pool,
            self._num_tokens, num_heads, shape.num_new_heads, shape.head_dim, rotary_dim,
        )  # fmt: skip
        self._paged_attention(
            queries.data_ptr(), *pool, *self._slices, output.data_ptr(), self._num_pieces, num_heads,
            shape.num_kv_heads, self._cache.block_size, *scoring(own),
            None if own.sinks is None else own.sinks.data_ptr(),
        )  # fmt: skip
        return output

    def _prepared(self, layer: int, qkv: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Heads as the kernel rotates and stores them."""
        if _needs_heads(self._spec.layers[layer]):
            assert self._heads is not None, "made where some layer needs it"
            return tuple(part for part in self._heads.of(layer, qkv) if part is not None)
        return before_rotation(self._spec, layer, qkv)


def scoring(own: LayerAttention) -> tuple[float, float, int]:
    """Scaling, cap and window of a layer, as compiled code takes them: zero for none."""
    return own.scaling, own.score_cap or 0.0, own.window or 0


def _needs_heads(own: LayerAttention) -> bool:
    """Whether something is done to heads after their rotation."""
    return own.query_factor is not None or own.norm_scope == "rotated"
