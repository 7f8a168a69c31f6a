"""CompiledAttention: compiled kernels attend straight from the cache, without gathering."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import torch

from helix_jobs.engine.attention.heads import StepHeads, before_rotation, is_plain
from helix_jobs.engine.attention.step_plan import PackedSlices, num_blocks_of
from helix_jobs.engine.cache_sections import first_seen
from helix_jobs.engine.kernels.cpu.kernels import NativeKernels

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from helix_jobs.engine.attention.backend import AttentionSpec, LayerAttention
    from helix_jobs.engine.attention.kv_cache import PagedKVCache
    from helix_jobs.engine.attention.rotary import RotaryTable
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
        self._calls: WeakKeyDictionary[PagedKVCache, tuple[_LayerCall, ...]] = WeakKeyDictionary()

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
        packed = PackedSlices.of(
            slices, order, cache.rows_in(section), cache.block_size, section=section, window=window
        )
        return packed.planned(DirectSlices.of(slices, packed.offsets, cache.block_size, section, window))

    def begin(self, layout: StepLayout, cache: PagedKVCache) -> CompiledStep:
        """See ``AttentionBackend``."""
        calls = self._calls.get(cache)
        if calls is None:
            calls = tuple(_LayerCall.of(self.spec, layer, cache) for layer in range(len(self.spec.layers)))
            self._calls[cache] = calls
        return CompiledStep(self.spec, self.native, layout, cache, calls)


@dataclass(frozen=True, slots=True)
class _LayerCall:
    """What a layer's kernels are called with in every step.

    Attributes:
        is_plain: Whether heads are rotated and stored as its product yields them.
        rotary: The rotation that the kernel does; None where there is none, and in layers that do more to rotated
            heads: ``StepHeads`` prepares these.
        pools: Pointers to its keys and values, and to the scales of both where they have any.
        num_kv_heads: Key-value heads whose keys it reads.
        new_heads: Query heads, heads whose keys it writes, and their width.
        attended: Query heads, ``num_kv_heads``, tokens a block, and its scoring: scaling, cap, window and a pointer to
            its sinks.
    """

    is_plain: bool
    rotary: RotaryTable | None
    pools: tuple[int, ...]
    num_kv_heads: int
    new_heads: tuple[int, int, int]
    attended: tuple[int, int, int, float, float, int, int | None]

    @classmethod
    def of(cls, spec: AttentionSpec, layer: int, cache: PagedKVCache) -> _LayerCall:
        """That of a layer with this cache."""
        own, shape, num_heads = spec.layers[layer], spec.geometry.layers[layer], spec.num_heads
        sinks = None if own.sinks is None else own.sinks.data_ptr()
        return cls(
            is_plain=is_plain(spec, layer) and not _needs_heads(own),
            rotary=None if _needs_heads(own) else own.rotary,
            pools=tuple(pool.data_ptr() for pool in cache.pools_of(layer)),
            num_kv_heads=shape.num_kv_heads,
            new_heads=(num_heads, shape.num_new_heads, shape.head_dim),
            attended=(num_heads, shape.num_kv_heads, cache.block_size, *scoring(own), sinks),
        )


class CompiledStep:
    """One step of ``CompiledAttention`` (satisfies ``AttentionStep``). Keeps every tensor that it has pointers into."""

    def __init__(
        self,
        spec: AttentionSpec,
        native: NativeKernels,
        layout: StepLayout,
        cache: PagedKVCache,
        calls: Sequence[_LayerCall],
    ) -> None:
        assert isinstance(layout.attention, DirectSlices), "the step was planned for another backend"
        slices = layout.attention
        self._spec = spec
        self._calls = calls
        self._rotate_and_store, self._paged_attention = native.paged(has_scales=cache.has_scales)
        # Key-value heads -> rows of the cache in which the step's tokens are written.
        self._write_rows = {own.num_heads: rows.data_ptr() for own, rows in layout.write_rows.items()}
        tables = {table: table.tables(layout.num_positions) for table in spec.rotaries}
        # The tokens' rows of cosines and signed sines, these, and the width that the kernel rotates.
        pointers = {
            table: (table.rows(layout).data_ptr(), cos.data_ptr(), sin.data_ptr(), cos.shape[-1])
            for table, (cos, sin) in tables.items()
        }
        unrotated = (layout.positions.data_ptr(), None, None, 0)
        self._rotary = [unrotated if call.rotary is None else pointers[call.rotary] for call in calls]
        self._heads = StepHeads(spec, layout) if any(map(_needs_heads, spec.layers)) else None
        # [T, num_heads * head_dim]: a layer's rotated queries, between its two kernels
        self._queries = torch.empty((layout.num_tokens, spec.num_heads * native.head_dim), dtype=cache.dtype)
        self._kept = (layout, tables, cache)
        self._slices = (slices.pieces.data_ptr(), slices.blocks.data_ptr())
        self._num_pieces = len(slices.pieces)

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See ``AttentionStep``."""
        call = self._calls[layer]
        qkv = (qkv if call.is_plain else self._prepared(layer, qkv)).contiguous()
        rows, cos, sin, rotary_dim = self._rotary[layer]
        queries = self._queries.data_ptr()
        # [T, num_heads * head_dim]
        output = torch.empty_like(self._queries)
        self._rotate_and_store(
            qkv.data_ptr(), rows, self._write_rows[call.num_kv_heads], cos, sin, queries, *call.pools, len(output),
            *call.new_heads, rotary_dim,
        )  # fmt: skip
        self._paged_attention(
            queries, *call.pools, *self._slices, output.data_ptr(), self._num_pieces, *call.attended
        )  # fmt: skip
        return output

    def _prepared(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """Heads as the kernel rotates and stores them, side by side: ``[T, heads, head_dim]``."""
        heads: torch.Tensor | tuple[torch.Tensor, ...]
        if _needs_heads(self._spec.layers[layer]):
            assert self._heads is not None, "made where some layer needs it"
            heads = tuple(part for part in self._heads.of(layer, qkv) if part is not None)
        else:
            heads = before_rotation(self._spec, layer, qkv)
        return torch.cat(heads, dim=1) if isinstance(heads, tuple) else heads


def scoring(own: LayerAttention) -> tuple[float, float, int]:
    """Scaling, cap and window of a layer, as compiled code takes them: zero for none."""
    return own.scaling, own.score_cap or 0.0, own.window or 0


def _needs_heads(own: LayerAttention) -> bool:
    """Whether something is done to heads after their rotation."""
    return own.query_factor is not None or own.norm_scope == "rotated"
