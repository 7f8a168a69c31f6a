"""AttentionBackend: plans and computes the attention of a step. AttentionSpec: a model's attention settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from helix_jobs.engine.attention.kv_cache import CacheGeometry, PagedKVCache
    from helix_jobs.engine.attention.rotary import RotaryTable
    from helix_jobs.engine.attention.step_layout import StepLayout, TokenSlice
    from helix_jobs.engine.attention.step_plan import StepPlan

    HeadNorm = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """The attention settings that may differ from layer to layer.

    Attributes:
        scaling: Factor by which scores are multiplied.
        query_norm: Normalises each query head before rotation (Qwen3), or None.
        key_norm: Normalises each key head; given exactly when ``query_norm`` is.
    """

    scaling: float
    query_norm: HeadNorm | None = None
    key_norm: HeadNorm | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """A model's attention, fixed when it is loaded.

    Attributes:
        geometry: Shape of the keys and values.
        num_heads: Query heads; each key-value head serves the same number of them.
        rotary: Rotary positions, or None.
        layers: Settings of each layer, in order.
    """

    geometry: CacheGeometry
    num_heads: int
    rotary: RotaryTable | None
    layers: tuple[LayerAttention, ...]


class AttentionStep(Protocol):
    """One step's attention, prepared for all layers."""

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """Rotate queries and keys, write keys and values to the cache, and attend.

        Args:
            layer: Index of the layer.
            qkv: ``[T, (num_heads + 2 * num_kv_heads) * head_dim]``

        Returns:
            ``[T, num_heads * head_dim]``
        """


class AttentionBackend(Protocol):
    """Plans and computes attention for one model. Only the kind of backend that planned a layout can read it."""

    @property
    def spec(self) -> AttentionSpec:
        """The attention of its model."""

    @property
    def kernels(self) -> str:
        """The name of its kernels, as results report it."""

    @property
    def is_independent(self) -> bool:
        """Whether a query's result depends on its own sequence alone, bit for bit.

        If so, the result does not change with the cut of a prompt into chunks, the rest of the batch, or the number of
        tokens verified together.
        """

    def plan(self, slices: Sequence[TokenSlice], cache: PagedKVCache, least_tokens: int = 0) -> StepPlan:
        """Pack slices and plan their attention, on the host.

        Args:
            slices: New tokens per sequence, each with at least one token.
            cache: The model's cache.
            least_tokens: Where shapes are padded, the least number of tokens to pad to; at most ``SMALL_STEP``.
        """

    def begin(self, layout: StepLayout, cache: PagedKVCache) -> AttentionStep:
        """Prepare a step for all layers.

        Args:
            layout: From a plan of this kind of backend.
            cache: The cache that the layout was planned for.
        """
