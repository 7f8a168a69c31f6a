"""Paged attention over ragged batches, registered with transformers under one name.

Own matrix products instead of scaled_dot_product_attention. Trade-off: SDPA is fused where it has a kernel, but on the
CPU it is far slower for one query per sequence, and DirectML has no kernel for it at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import AttentionInterface

if TYPE_CHECKING:
    from helix_jobs.engine.kv_cache import PagedKVCache
    from helix_jobs.engine.step_layout import AttentionGroup, StepLayout

ATTENTION_NAME: Final = "helix_paged"


@dataclass(frozen=True, slots=True)
class PagedStep:
    """What the attention function needs beside the tensors; reaches it as the keyword argument ``paged_step``."""

    cache: PagedKVCache
    layout: StepLayout


def paged_attention(  # noqa: PLR0917  (transformers' signature)
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001  (transformers' signature; the layout carries the masks)
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001  (inference only)
    *,
    paged_step: PagedStep,
    **_kwargs: Any,  # noqa: ANN401  (transformers passes what other implementations want)
) -> tuple[torch.Tensor, None]:
    """Attend over the paged cache: write the step's keys and values, then solve each group densely.

    Args:
        module: The attention layer; ``layer_idx`` and ``head_dim`` are read.
        query: ``[1, num_heads, T, head_dim]``, rotated.
        key: ``[1, num_kv_heads, T, head_dim]``, rotated, not repeated.
        value: ``[1, num_kv_heads, T, head_dim]``
        attention_mask: Always None: no mask is registered under this name.
        scaling: Factor of the scores.
        dropout: Ignored.
        paged_step: Cache and layout of this step.

    Returns:
        ``[1, T, num_heads, head_dim]`` and None.
    """
    cache, layout = paged_step.cache, paged_step.layout
    layer: int = module.layer_idx  # type: ignore[assignment]  # nn.Module declares attributes as Tensor | Module
    _, num_heads, num_tokens, head_dim = query.shape
    cache.write(
        layer,
        layout.write_rows,
        key.squeeze(0).transpose(0, 1).reshape(-1, head_dim),
        value.squeeze(0).transpose(0, 1).reshape(-1, head_dim),
    )
    # [T, num_heads, head_dim]
    queries = query.squeeze(0).transpose(0, 1)
    factor = head_dim**-0.5 if scaling is None else scaling
    if query.dtype is torch.float16:
        # An unscaled product can leave float16's range; elsewhere scaling the fp32 scores rounds less.
        queries, factor = queries * factor, 1.0
    outputs = [_attend(group, queries, cache, layer, factor) for group in layout.groups]
    # [sum of n * q, num_heads * head_dim]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if layout.output_rows is not None:
        output = output.index_select(0, layout.output_rows)
    return output.view(1, num_tokens, num_heads, head_dim), None


def _attend(
    group: AttentionGroup, queries: torch.Tensor, cache: PagedKVCache, layer: int, scaling: float
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
    keys, values = cache.gather(layer, group.gather_rows, n * kv)
    # [n * kv, share * q, num_keys]
    scores = torch.bmm(grouped, keys.transpose(1, 2)).float().mul_(scaling)
    scores.view(n, num_heads, q, -1).add_(group.mask)
    weights = torch.softmax(scores, dim=-1).to(values.dtype)
    # [n * kv, share * q, head_dim]
    output = torch.bmm(weights, values)
    return output.view(n, num_heads, q, head_dim).transpose(1, 2).reshape(n * q, num_heads * head_dim)


AttentionInterface.register(ATTENTION_NAME, paged_attention)
