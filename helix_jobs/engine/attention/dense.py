"""Paged attention over ragged batches, in plain matrix products.

Trade-off: scaled_dot_product_attention is fused where it has a kernel, but on the CPU it is far slower for one query
per sequence, and DirectML has no kernel for it at all.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from helix_jobs.engine.attention.kv_cache import PagedKVCache
    from helix_jobs.engine.attention.rotary import RotaryTable, Rotation
    from helix_jobs.engine.attention.step_layout import AttentionGroup, StepLayout
    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels
    from helix_jobs.engine.model.decoder import DecoderLayer


class AttentionClock:
    """Sums up time spent in attention. Of use on devices that have finished an operator when it returns."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._started = 0.0

    def start(self) -> None:
        """Attention of a layer begins."""
        self._started = time.perf_counter()

    def stop(self) -> None:
        """It ends."""
        self._seconds += time.perf_counter() - self._started

    def add(self, seconds: float) -> None:
        """Count time that compiled code has measured itself."""
        self._seconds += seconds

    def take(self) -> float:
        """Return the seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def attend(  # noqa: PLR0917  (one call site; a keyword call costs more, and it is made for every layer)
    qkv: torch.Tensor,
    index: int,
    layer: DecoderLayer,
    num_heads: int,
    rotary: RotaryTable | None,
    rotation: Rotation | None,
    cache: PagedKVCache,
    layout: StepLayout,
) -> torch.Tensor:
    """Rotate queries and keys, write keys and values to the cache, then solve each group of the step densely.

    Args:
        qkv: ``[T, (num_heads + 2 * num_kv_heads) * head_dim]``
        index: Which layer of the cache.
        layer: Its head norms and scaling are used.
        num_heads: Query heads.
        rotary: How to rotate, or None.
        rotation: Cosines and sines of this step; given exactly when ``rotary`` is.
        cache: The model's paged cache.
        layout: The step.

    Returns:
        ``[T, num_heads * head_dim]``
    """
    num_kv_heads, head_dim = cache.geometry.num_kv_heads, cache.geometry.head_dim
    # [T, heads, head_dim]
    heads = qkv.view(layout.num_tokens, num_heads + 2 * num_kv_heads, head_dim)
    if layer.query_norm is not None and layer.key_norm is not None:
        queries, keys, values = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
        turning = torch.cat((layer.query_norm(queries), layer.key_norm(keys)), dim=1)
    else:
        turning, values = heads.split((num_heads + num_kv_heads, num_kv_heads), dim=1)
    if rotary is not None and rotation is not None:
        turning = rotary.rotate(turning, rotation)
    # [T, num_heads, head_dim] and [T, num_kv_heads, head_dim]
    queries, keys = turning.split((num_heads, num_kv_heads), dim=1)
    cache.write(index, layout.write_rows, keys.reshape(-1, head_dim), values.reshape(-1, head_dim))
    return _solve_groups(layout, queries, cache, index, layer.scaling)


def attend_natively(  # noqa: PLR0917  (as above)
    qkv: torch.Tensor,
    index: int,
    layer: DecoderLayer,
    num_heads: int,
    tables: tuple[torch.Tensor, torch.Tensor] | None,
    cache: PagedKVCache,
    layout: StepLayout,
    native: NativeKernels,
) -> torch.Tensor:
    """``attend`` with compiled kernels: every query is solved straight from the cache, nothing is gathered.

    A query's result is a function of its own sequence alone, bit for bit: how a prompt is cut into chunks, what else is
    in the step and how many tokens are verified together change nothing.

    Args:
        qkv: As for ``attend``.
        index: As for ``attend``.
        layer: As for ``attend``.
        num_heads: As for ``attend``.
        tables: Cosines and signed sines by position; None rotates nothing.
        cache: As for ``attend``.
        layout: As for ``attend``.
        native: The kernels.
    """
    num_kv_heads, head_dim = cache.geometry.num_kv_heads, cache.geometry.head_dim
    if layer.query_norm is not None and layer.key_norm is not None:
        heads = qkv.view(layout.num_tokens, num_heads + 2 * num_kv_heads, head_dim)
        queries, keys, values = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
        qkv = torch.cat((layer.query_norm(queries), layer.key_norm(keys), values), dim=1)
    # [T, num_heads * head_dim]
    queries = native.rotate_and_store(
        qkv.contiguous(), layout.positions, layout.write_rows, tables, cache.keys[index], cache.values[index],
        num_heads, num_kv_heads, head_dim,
    )  # fmt: skip
    assert layout.direct is not None, "the layout was planned for compiled kernels"
    output = torch.empty_like(queries)
    native.paged_attention(
        queries, cache.keys[index], cache.values[index], layout.direct.pieces, layout.direct.blocks, output, num_heads,
        num_kv_heads, cache.block_size, layer.scaling,
    )  # fmt: skip
    return output


def _solve_groups(
    layout: StepLayout, queries: torch.Tensor, cache: PagedKVCache, index: int, factor: float
) -> torch.Tensor:
    """Solve every group; return the outputs of their tokens in packed order, ``[n, num_heads * head_dim]``."""
    if queries.dtype is torch.float16:
        # An unscaled product can leave float16's range; elsewhere scaling the fp32 scores rounds less.
        queries, factor = queries * factor, 1.0
    outputs = [_solve(group, queries, cache, index, factor) for group in layout.groups]
    # [sum of n * q, num_heads * head_dim]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if layout.output_rows is not None:
        output = output.index_select(0, layout.output_rows)
    return output


def _solve(
    group: AttentionGroup, queries: torch.Tensor, cache: PagedKVCache, index: int, scaling: float
) -> torch.Tensor:
    """Solve one group; return ``[n * q, num_heads * head_dim]``."""
    n, q, kv = group.num_rows, group.num_queries, cache.geometry.num_kv_heads
    _, num_heads, head_dim = queries.shape
    share = num_heads // kv
    if group.query_rows is None:
        grouped = queries.narrow(0, group.first_token, n * q)
    else:
        grouped = queries.index_select(0, group.query_rows)
    # [n * kv, share * q, head_dim]: the query heads that share a key-value head are rows of one product
    grouped = grouped.reshape(n, q, num_heads, head_dim).transpose(1, 2).reshape(n * kv, share * q, head_dim)
    # each: [n * kv, num_keys, head_dim]
    keys, values = cache.gather(index, group.gather_rows, n * kv)
    # [n * kv, share * q, num_keys]
    keys = keys.transpose(1, 2)
    if cache.is_on_directml:  # its products want their operands contiguous; elsewhere that is a copy for nothing
        grouped, keys = grouped.contiguous(), keys.contiguous()
    weights = torch.bmm(grouped, keys)
    # One name for all of them: each goes as soon as the next is made, so that two at most are in memory.
    weights = weights.float().mul_(scaling)
    weights.view(n, num_heads, q, -1).add_(group.mask)
    weights = torch.softmax(weights, dim=-1)
    weights = weights.to(values.dtype)
    # [n * kv, share * q, head_dim]
    output = torch.bmm(weights, values)
    return output.view(n, num_heads, q, head_dim).transpose(1, 2).reshape(n * q, num_heads * head_dim)
