"""SdpaAttention: the groups of a step by torch's scaled_dot_product_attention, fused where the device has a kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from torch.nn import functional

from helix_jobs.engine.attention.dense import DenseAttention, DenseStep

if TYPE_CHECKING:
    import torch

    from helix_jobs.engine.attention.backend import AttentionSpec
    from helix_jobs.engine.attention.groups import AttentionGroup
    from helix_jobs.engine.attention.kv_cache import PagedKVCache
    from helix_jobs.engine.attention.step_layout import StepLayout


class SdpaAttention(DenseAttention):
    """Like ``DenseAttention``, but one operator replaces two products and a softmax: no scores are in memory.

    The operator is given key-value heads as its heads; the query heads that share one are rows of it. Trade-off:
    ``enable_gqa`` needs no such order, but with a mask it takes torch's unfused path.
    """

    kernels = "torch sdpa"
    # The features of layers that it computes; see ``features_of``.
    SERVED: Final = frozenset(
        {
            *("query_norm", "key_norm", "norm_scope", "rotary", "window", "clip", "query_factor", "latent"),
            *("layers", "source", "value_dim", "has_values", "value_norm", "has_values_of_keys"),
        }
    )

    def __init__(self, spec: AttentionSpec) -> None:
        assert self.serves(spec), "the operator does not compute all features of these layers"
        super().__init__(spec)

    @classmethod
    def serves(cls, spec: AttentionSpec) -> bool:
        """Whether the operator computes this model's attention."""
        return spec.features <= cls.SERVED

    def begin(self, layout: StepLayout, cache: PagedKVCache) -> SdpaStep:
        """See ``AttentionBackend``."""
        return SdpaStep(self.spec, layout, cache)


class SdpaStep(DenseStep):
    """One step of ``SdpaAttention`` (satisfies ``AttentionStep``)."""

    def __init__(self, spec: AttentionSpec, layout: StepLayout, cache: PagedKVCache) -> None:
        super().__init__(spec, layout, cache)
        self._dtype = cache.dtype
        # The operator wants masks in the dtype of the queries. Masks of single queries are small, and made once.
        groups = (
            replace(group, masks={window: mask.to(self._dtype) for window, mask in group.masks.items()})
            if group.num_queries == 1
            else group
            for group in self._slices.groups
        )
        self._slices = replace(self._slices, groups=tuple(groups))

    def _solve(self, layer: int, group: AttentionGroup, queries: torch.Tensor, scaling: float) -> torch.Tensor:
        """Solve one group; return ``[n * q, num_heads * value_width]``."""
        n, q, shape = group.num_rows, group.num_queries, self._spec.geometry.layers[layer]
        kv = shape.num_kv_heads
        share = self._spec.num_heads // kv
        keys, values = self._cache.gather(layer, group.gather_rows[self._cache.block_rows[layer]], n * kv)
        # [n, kv, share * q, value_width]
        output: torch.Tensor = functional.scaled_dot_product_attention(
            self._queries_of(group, queries, kv).view(n, kv, share * q, shape.head_dim),
            keys.unflatten(0, (n, kv)),
            values.unflatten(0, (n, kv)),
            attn_mask=self._mask(group, self._spec.layers[layer].window, share),
            scale=scaling,
        )
        # [n, kv, share, q, value_width] -> [n, q, kv, share, value_width]
        by_token: torch.Tensor = output.unflatten(2, (share, q)).permute(0, 3, 1, 2, 4)
        return by_token.reshape(n * q, self._spec.num_heads * shape.value_width)

    def _mask(self, group: AttentionGroup, window: int | None, share: int) -> torch.Tensor:
        """``[n, 1, share * q, num_keys]``, or ``[n, 1, 1, num_keys]`` for single queries, which broadcasts.

        Made anew for each layer: the masks of all groups together would take as much memory as a full cache of prompts.
        """
        n, q = group.num_rows, group.num_queries
        if q == 1:
            return group.masks[window]
        mask = group.masks[window].expand(n, share, q, -1).to(self._dtype)
        return mask.reshape(n, 1, share * q, -1)
