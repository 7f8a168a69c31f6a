"""AttentionBackend: plans and computes the attention of a step. AttentionSpec: a model's attention settings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

from helix_jobs.engine.attention.features import features_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from helix_jobs.engine.attention.cache_geometry import CacheGeometry, CacheShape
    from helix_jobs.engine.attention.kv_cache import PagedKVCache
    from helix_jobs.engine.attention.latent import LatentHeads
    from helix_jobs.engine.attention.query_factor import QueryFactor
    from helix_jobs.engine.attention.rotary import RotaryTable
    from helix_jobs.engine.attention.step_layout import StepLayout, TokenSlice
    from helix_jobs.engine.attention.step_plan import StepPlan
    from helix_jobs.engine.cache_sections import LayerSections

    HeadNorm = Callable[[torch.Tensor], torch.Tensor]

NormScope = Literal["head", "row", "rotated"]


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """The attention settings of one layer. A default computes nothing.

    Attributes:
        scaling: Factor by which scores are multiplied.
        query_norm: Normalises queries (Qwen3), or None.
        key_norm: Normalises keys; given exactly when ``query_norm`` is, unless the layer reads another's keys.
        norm_scope: What the two normalise: each ``head`` before it is rotated, the whole ``row`` of all heads before it
            is split into heads (OLMo 2), or each head after it is ``rotated`` (Hunyuan).
        rotary: Rotary positions, or None.
        window: Number of keys that a query sees, its own and those right before it; None for all.
        score_cap: Bound of the scaled scores: ``cap * tanh(score / cap)`` (Gemma 2); None for none.
        clip: Bound of the magnitude of queries, keys and values as they leave their product (OLMo), or behind norms of
            the whole row (OLMoE); None for none.
        query_factor: Factor of the rotated queries by position (Ministral 3), or None.
        sinks: ``[num_heads]`` float32, the score of one more key of each head, whose value is zero (GPT-OSS; Xiao et
            al. 2023, arXiv:2309.17453); None for none.
        latent: Latent attention (DeepSeek-V2), or None. Norms, clip and factor of queries have no meaning beside it.
        value_norm: Normalises each value (Gemma 4), or None.
        has_values_of_keys: Whether values are the keys as these leave their product, before norm and rotation; the
            product then yields none (Gemma 4).
    """

    scaling: float
    query_norm: HeadNorm | None = None
    key_norm: HeadNorm | None = None
    norm_scope: NormScope = "head"
    rotary: RotaryTable | None = None
    window: int | None = None
    score_cap: float | None = None
    clip: float | None = None
    query_factor: QueryFactor | None = None
    sinks: torch.Tensor | None = None
    latent: LatentHeads | None = None
    value_norm: HeadNorm | None = None
    has_values_of_keys: bool = False


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """A model's attention, fixed when it is loaded.

    Attributes:
        geometry: Shapes of the keys and values, one for each of ``layers``.
        num_heads: Query heads of a layer; each of its key-value heads serves the same number of them.
        layers: Settings of each layer, in order.
    """

    geometry: CacheGeometry
    num_heads: int
    layers: tuple[LayerAttention, ...]

    def width(self, layer: int) -> int:
        """Elements of a token's result in a layer."""
        latent = self.layers[layer].latent
        if latent is not None:
            return latent.width
        return self.num_heads * self.geometry.layers[layer].value_width

    # Worked out once: a step asks for these. (A cached property needs a class without slots.)

    @cached_property
    def head_counts(self) -> tuple[tuple[int, ...], ...]:
        """The heads that each layer's product yields: those of queries, of keys and of values, as far as it does."""
        return tuple(
            (self.num_heads, shape.num_new_heads, shape.num_new_heads)[: _num_parts(own, shape)]
            for own, shape in zip(self.layers, self.geometry.layers, strict=True)
        )

    @cached_property
    def rotaries(self) -> tuple[RotaryTable, ...]:
        """The tables of its layers, each once."""
        return tuple(dict.fromkeys(layer.rotary for layer in self.layers if layer.rotary is not None))

    @cached_property
    def original_context(self) -> int | None:
        """The longest sequence before other rotary frequencies set in (LongRoPE); None where none do."""
        found = {table.original_context for table in self.rotaries} - {None}
        assert len(found) <= 1, "one length decides for all layers"
        return next(iter(found), None)

    @cached_property
    def windows(self) -> tuple[int | None, ...]:
        """The windows of its layers, each once."""
        return tuple(dict.fromkeys(layer.window for layer in self.layers))

    def windows_in(self, sections: LayerSections, section: int) -> tuple[int | None, ...]:
        """The windows of the layers in a section of its cache, each once."""
        own = enumerate(self.layers)
        return tuple(dict.fromkeys(layer.window for index, layer in own if sections.of(index) == section))

    @property
    def features(self) -> frozenset[str]:
        """The optional fields that some layer or its cache uses. See ``features_of``."""
        return self.geometry.features.union(*map(features_of, self.layers))


def _num_parts(own: LayerAttention, shape: CacheShape) -> int:
    """How many of queries, keys and values a layer's product yields."""
    if shape.source is not None:
        return 1
    return 3 if shape.has_values and not own.has_values_of_keys else 2


class AttentionStep(Protocol):
    """One step's attention, prepared for all layers."""

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """Rotate queries and keys, write keys and values to the cache, and attend.

        Args:
            layer: Index of the layer.
            qkv: ``[T, num_heads * head_dim + num_kv_heads * (head_dim + value_width)]``: queries, keys and values. Keys
                and values are not there where the layer reads those of another, nor values where they are columns of
                the keys. For latent attention see ``LatentHeads.absorbed``.

        Returns:
            ``[T, num_heads * value_width]``, or of latent attention ``[T, num_heads * value_dim]``.
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

    def plan(
        self, slices: Sequence[TokenSlice], cache: PagedKVCache, least_tokens: int = 0, section: int = 0
    ) -> StepPlan:
        """Pack slices and plan their attention, on the host.

        Args:
            slices: New tokens per sequence, each with at least one token.
            cache: The model's cache.
            least_tokens: Where shapes are padded, the least number of tokens to pad to; at most ``SMALL_STEP``.
            section: The section of the cache whose layers to plan for. All sections pack the tokens in one order.
        """

    def begin(self, layout: StepLayout, cache: PagedKVCache) -> AttentionStep:
        """Prepare a step for all layers.

        Args:
            layout: From a plan of this kind of backend.
            cache: The cache that the layout was planned for.
        """
