"""AttentionBackend: who plans and computes the attention of a step; and AttentionSpec, what a model's attention is."""

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
    """What may differ from layer to layer.

    Attributes:
        scaling: Factor of the scores.
        query_norm: Normalises each query head before rotation (Qwen3), or None.
        key_norm: The same for keys; given exactly when ``query_norm`` is.
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
        layers: In order.
    """

    geometry: CacheGeometry
    num_heads: int
    rotary: RotaryTable | None
    layers: tuple[LayerAttention, ...]


class AttentionStep(Protocol):
    """One step, prepared for all layers."""

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """Rotate queries and keys, write keys and values to the cache, and attend.

        Args:
            layer: Which.
            qkv: ``[T, (num_heads + 2 * num_kv_heads) * head_dim]``

        Returns:
            ``[T, num_heads * head_dim]``
        """


class AttentionBackend(Protocol):
    """Computes attention for one model. It plans a step's layout, which no other kind of backend can read."""

    @property
    def spec(self) -> AttentionSpec:
        """What it computes."""

    @property
    def kernels(self) -> str:
        """Whose kernels these are, as results name them."""

    @property
    def is_independent(self) -> bool:
        """Whether a query's result depends on its own sequence alone, bit for bit.

        Then neither how a prompt is cut into chunks, nor what else is in the step, nor how many tokens are verified
        together changes it.
        """

    @property
    def mask_bytes(self) -> int:
        """Bytes that a step's masks take for each query and each key it may see."""

    def plan(self, slices: Sequence[TokenSlice], cache: PagedKVCache, least_tokens: int = 0) -> StepPlan:
        """Pack slices and plan their attention, on the host.

        Args:
            slices: New tokens per sequence, each with at least one token.
            cache: The model's.
            least_tokens: Where shapes are padded, pad to so many tokens at least; no more than ``SMALL_STEP``.
        """

    def begin(self, layout: StepLayout, cache: PagedKVCache) -> AttentionStep:
        """Prepare a step for all layers.

        Args:
            layout: From a plan of this kind of backend.
            cache: The one it was planned for.
        """
