"""DenseAttention: paged attention over ragged batches, in plain matrix products.

Trade-off: scaled_dot_product_attention is fused where it has a kernel, but on the CPU it is far slower for one query
per sequence, and DirectML has no kernel for it at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.attention.groups import GroupedSlices, plan_groups
from helix_jobs.engine.attention.heads import StepHeads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.attention.backend import AttentionSpec
    from helix_jobs.engine.attention.groups import AttentionGroup
    from helix_jobs.engine.attention.kv_cache import PagedKVCache
    from helix_jobs.engine.attention.step_layout import StepLayout, TokenSlice
    from helix_jobs.engine.attention.step_plan import StepPlan


class DenseAttention:
    """Each group of a step as two batched products and a softmax (satisfies ``AttentionBackend``)."""

    kernels = "torch"
    is_independent = False

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec

    def plan(
        self, slices: Sequence[TokenSlice], cache: PagedKVCache, least_tokens: int = 0, section: int = 0
    ) -> StepPlan:
        """See ``AttentionBackend``."""
        return plan_groups(
            slices,
            cache.geometry,
            cache.block_size,
            num_heads=self.spec.num_heads,
            block_rows=cache.rows_in(section),
            windows=self.spec.windows_in(cache.sections, section),
            spare_block=cache.spare_block,
            least_tokens=least_tokens,
            section=section,
            window=cache.sections.windows[section],
        )

    def begin(self, layout: StepLayout, cache: PagedKVCache) -> DenseStep:
        """See ``AttentionBackend``."""
        return DenseStep(self.spec, layout, cache)


class DenseStep:
    """One step of ``DenseAttention`` (satisfies ``AttentionStep``)."""

    def __init__(self, spec: AttentionSpec, layout: StepLayout, cache: PagedKVCache) -> None:
        assert isinstance(layout.attention, GroupedSlices), "the step was planned for another backend"
        self._spec = spec
        self._layout = layout
        self._slices = layout.attention
        self._cache = cache
        self._heads = StepHeads(spec, layout)

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See ``AttentionStep``."""
        queries, keys, values = self._heads.of(layer, qkv)
        if keys is not None:
            shape = self._spec.geometry.layers[layer]
            values = None if values is None else values.reshape(-1, shape.value_width)
            rows = self._layout.write_rows[self._cache.block_rows[layer]]
            self._cache.write(layer, rows, keys.reshape(-1, shape.head_dim), values)
        outputs = self._solve_groups(layer, queries)
        # What is not needed any more is freed before the results are copied.
        del queries, keys, values
        output, latent = self._in_order(outputs), self._spec.layers[layer].latent
        return output if latent is None else latent.results(output)

    def _solve_groups(self, layer: int, queries: torch.Tensor) -> list[torch.Tensor]:
        """Solve every group; return its tokens' results, each ``[n * q, num_heads * value_width]``."""
        scaling = self._spec.layers[layer].scaling
        if queries.dtype is torch.float16:
            # An unscaled product can leave float16's range; elsewhere scaling the fp32 scores rounds less.
            queries, scaling = queries * scaling, 1.0
        return [self._solve(layer, group, queries, scaling) for group in self._slices.groups]

    def _in_order(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """The results of tokens in packed order, ``[T, num_heads * value_width]``; the list is emptied."""
        # [sum of n * q, num_heads * value_width]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        outputs.clear()
        if self._slices.output_rows is not None:
            output = output.index_select(0, self._slices.output_rows)
        return output

    def _solve(self, layer: int, group: AttentionGroup, queries: torch.Tensor, scaling: float) -> torch.Tensor:
        """Solve one group; return ``[n * q, num_heads * value_width]``."""
        n, q, kv = group.num_rows, group.num_queries, self._spec.geometry.layers[layer].num_kv_heads
        num_heads = self._spec.num_heads
        grouped = self._queries_of(group, queries, kv)
        # each: [n * kv, num_keys, width]
        keys, values = self._cache.gather(layer, group.gather_rows[self._cache.block_rows[layer]], n * kv)
        # [n * kv, share * q, num_keys]
        keys = keys.transpose(1, 2)
        if self._cache.is_on_directml:  # its products want contiguous operands; elsewhere the copy gains nothing
            grouped, keys, values = grouped.contiguous(), keys.contiguous(), values.contiguous()
        weights = torch.bmm(grouped, keys)
        # Reusing one name frees each tensor as soon as the next is made: at most two are in memory.
        weights = weights.float().mul_(scaling)
        own = self._spec.layers[layer]
        if own.score_cap is not None:
            weights = weights.div_(own.score_cap).tanh_().mul_(own.score_cap)
        weights.view(n, num_heads, q, -1).add_(group.masks[own.window])
        weights = torch.softmax(weights, dim=-1) if own.sinks is None else _softmax_with_sinks(weights, own.sinks, q)
        weights = weights.to(values.dtype)
        return self._packed(group, torch.bmm(weights, values))

    @staticmethod
    def _queries_of(group: AttentionGroup, queries: torch.Tensor, kv: int) -> torch.Tensor:
        """The group's queries, ``[n * kv, share * q, head_dim]``: heads that share a key-value head are its rows."""
        n, q = group.num_rows, group.num_queries
        _, num_heads, head_dim = queries.shape
        if group.query_rows is None:
            grouped = queries.narrow(0, group.first_token, n * q)
        else:
            grouped = queries.index_select(0, group.query_rows)
        grouped = grouped.reshape(n, q, num_heads, head_dim).transpose(1, 2)
        return grouped.reshape(n * kv, num_heads // kv * q, head_dim)

    def _packed(self, group: AttentionGroup, output: torch.Tensor) -> torch.Tensor:
        """Reorder ``[n * kv, share * q, value_width]`` token by token, to ``[n * q, num_heads * value_width]``."""
        n, q, num_heads, width = group.num_rows, group.num_queries, self._spec.num_heads, output.shape[-1]
        return output.view(n, num_heads, q, width).transpose(1, 2).reshape(n * q, num_heads * width)


def _softmax_with_sinks(scores: torch.Tensor, sinks: torch.Tensor, num_queries: int) -> torch.Tensor:
    """The softmax of scores and of one more score for each head; of keys alone, which sum to less than one.

    Args:
        scores: ``[n * kv, share * q, num_keys]`` float32.
        sinks: ``[num_heads]`` float32.
        num_queries: ``q``.

    Returns:
        ``[n * kv, share * q, num_keys]``.
    """
    rows, heads_and_queries, num_keys = scores.shape
    share = heads_and_queries // num_queries
    kv = len(sinks) // share
    sink = sinks.view(1, kv, share, 1).expand(rows // kv, kv, share, num_queries).reshape(rows, heads_and_queries, 1)
    return torch.softmax(torch.cat((scores, sink), dim=-1), dim=-1).narrow(-1, 0, num_keys)
