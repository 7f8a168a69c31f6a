"""CompiledAttention: compiled kernels attend straight from the cache, without gathering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.engine.attention.step_plan import PackedSlices, num_blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from helix_jobs.engine.attention.backend import AttentionSpec
    from helix_jobs.engine.attention.kv_cache import PagedKVCache
    from helix_jobs.engine.attention.step_layout import StepLayout, TokenSlice
    from helix_jobs.engine.attention.step_plan import StepPlan
    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels

# Queries of a slice attended for at once: the scores of a longer piece would not stay in the processor's caches.
_QUERY_LENGTH: Final = 16


@dataclass(frozen=True, slots=True)
class DirectSlices:
    """Slices, cut into short pieces, as compiled kernels read them (satisfies ``AttentionPlan`` too: all on the CPU).

    Attributes:
        pieces: ``[num_pieces, 4]`` int64: first token, number of tokens, start position, first entry in ``blocks``.
        blocks: The slices' block tables one after another, int32.
    """

    pieces: torch.Tensor
    blocks: torch.Tensor

    @classmethod
    def of(cls, slices: Sequence[TokenSlice], offsets: Sequence[int], block_size: int) -> DirectSlices:
        """Cut slices up. ``offsets`` says where each of them starts in the packed row."""
        pieces: list[tuple[int, int, int, int]] = []
        blocks: list[int] = []
        for first_token, part in zip(offsets, slices, strict=True):
            for done in range(0, part.num_tokens, _QUERY_LENGTH):
                num_tokens = min(_QUERY_LENGTH, part.num_tokens - done)
                pieces.append((first_token + done, num_tokens, part.start + done, len(blocks)))
            blocks.extend(part.blocks[: num_blocks_of(part.start + part.num_tokens, block_size)])
        return cls(torch.tensor(pieces, dtype=torch.int64), torch.tensor(blocks, dtype=torch.int32))

    def arrays(self) -> list[NDArray[np.int64]]:
        """None: the CPU needs no upload."""
        return []

    def on_device(self, _uploaded: Iterator[torch.Tensor]) -> DirectSlices:
        """Itself."""
        return self


class CompiledAttention:
    """Solves every query straight from the cache (satisfies ``AttentionBackend``)."""

    kernels = "compiled"
    is_independent = True

    def __init__(self, spec: AttentionSpec, native: NativeKernels) -> None:
        assert native.head_dim == spec.geometry.head_dim, "kernels are compiled for one size of heads"
        self.spec = spec
        self.native = native

    def plan(self, slices: Sequence[TokenSlice], cache: PagedKVCache, least_tokens: int = 0) -> StepPlan:
        """See ``AttentionBackend``. Slices stay in their order, and nothing is padded."""
        del least_tokens
        packed = PackedSlices.of(slices, range(len(slices)), cache.geometry, cache.block_size)
        return packed.planned(DirectSlices.of(slices, packed.offsets, cache.block_size))

    def begin(self, layout: StepLayout, cache: PagedKVCache) -> CompiledStep:
        """See ``AttentionBackend``."""
        return CompiledStep(self.spec, self.native, layout, cache)


class CompiledStep:
    """One step of ``CompiledAttention`` (satisfies ``AttentionStep``). Keeps every tensor that it has pointers into."""

    def __init__(self, spec: AttentionSpec, native: NativeKernels, layout: StepLayout, cache: PagedKVCache) -> None:
        assert isinstance(layout.attention, DirectSlices), "the step was planned for another backend"
        geometry, slices = spec.geometry, layout.attention
        self._spec = spec
        self._native = native
        self._cache = cache
        self._tokens = (layout.positions.data_ptr(), layout.write_rows.data_ptr())
        # Cosines and signed sines by position; none where nothing is rotated.
        self._tables: tuple[int | None, int | None] = (None, None)
        rotary_dim = 0
        tables: tuple[torch.Tensor, ...] = ()
        if spec.rotary is not None:
            tables = cos, sin = spec.rotary.tables(layout.num_positions)
            self._tables, rotary_dim = (cos.data_ptr(), sin.data_ptr()), cos.shape[-1]
        self._kept = (layout, tables)
        self._slices = (slices.pieces.data_ptr(), slices.blocks.data_ptr())
        self._num_pieces = len(slices.pieces)
        self._heads = (spec.num_heads, geometry.num_kv_heads)
        self._rotated = (layout.num_tokens, *self._heads, geometry.head_dim, rotary_dim)

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See ``AttentionStep``."""
        own, (num_heads, num_kv_heads) = self._spec.layers[layer], self._heads
        head_dim = self._spec.geometry.head_dim
        if own.query_norm is not None and own.key_norm is not None:
            heads = qkv.view(len(qkv), num_heads + 2 * num_kv_heads, head_dim)
            queries, keys, values = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
            qkv = torch.cat((own.query_norm(queries), own.key_norm(keys), values), dim=1)
        qkv = qkv.contiguous()
        pool = (self._cache.keys[layer].data_ptr(), self._cache.values[layer].data_ptr())
        # each: [T, num_heads * head_dim]
        queries = qkv.new_empty((len(qkv), num_heads * head_dim))
        output = torch.empty_like(queries)
        self._native.rotate_and_store(
            qkv.data_ptr(), *self._tokens, *self._tables, queries.data_ptr(), *pool, *self._rotated
        )
        self._native.paged_attention(
            queries.data_ptr(), *pool, *self._slices, output.data_ptr(), self._num_pieces, *self._heads,
            self._cache.block_size, own.scaling,
        )  # fmt: skip
        return output
