"""ModelDescription: what a decoder-only transformer computes, as data, read from its configuration alone.

A family (``families/NAME.py``) writes a description; ``assembly`` builds a ``Decoder`` from it and from the weights
that it names. A feature that a family lacks keeps its default, and the default computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from helix_jobs.engine.attention.cache_geometry import CacheGeometry, CacheShape
from helix_jobs.engine.model.recurrence_description import SelectiveScanDescription, ShortConvDescription

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.attention.backend import NormScope
    from helix_jobs.engine.model.altup_description import AltUpDescription, StreamsDescription
    from helix_jobs.engine.model.expert_description import BesideDescription, ExpertsDescription
    from helix_jobs.engine.model.latent_description import LatentDescription
    from helix_jobs.engine.model.layer_input_description import LayerInputDescription, LayerInputsDescription
    from helix_jobs.engine.model.recurrence_description import RecurrenceDescription


class UnsupportedSettingError(Exception):
    """A family's configuration has a setting that Helix does not compute; the message says which, without the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormDescription:
    """A norm.

    Attributes:
        name: Its module; None for a norm without weight.
        kind: ``rms`` (root mean square) or ``layer`` (mean and variance).
        eps: Added to the mean square.
        offset: Added to the stored weight (Gemma stores the weight minus one).
        heads: Modules of the heads' own norms, where each head has one (StableLM).
    """

    name: str | None
    kind: Literal["rms", "layer"]
    eps: float
    offset: float = 0.0
    heads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RowFactor:
    """What consecutive rows of a projection are multiplied with.

    Attributes:
        count: Number of rows.
        weight: Factor of their weights.
        bias: Factor of their biases.
    """

    count: int
    weight: float
    bias: float


@dataclass(frozen=True, slots=True)
class ProjectionDescription:
    """A matrix product: the modules whose outputs stand side by side.

    Attributes:
        names: The modules.
        is_transposed: Whether they store ``[in_features, out_features]`` (GPT-2).
        factors: Of all rows in their order, or empty. Rows are multiplied once, when they are read (Falcon-H1).
            Trade-off: this rounds weights of 16 bits once more, and saves each step the multiplications, which would
            round its activations instead.
    """

    names: tuple[str, ...]
    is_transposed: bool = False
    factors: tuple[RowFactor, ...] = ()

    def beside(self, other: ProjectionDescription) -> ProjectionDescription:
        """This one's outputs, and behind them the other's."""
        assert bool(self.factors) == bool(other.factors), "factors are those of all rows"
        return ProjectionDescription(self.names + other.names, factors=self.factors + other.factors)


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryDescription:
    """Where a layer's rotary frequencies come from.

    Attributes:
        module: The base model's module that computed them.
        layer_type: The kind of layers whose frequencies are meant, where the module has several.
        theta: Base of the frequencies, where no module holds them (GPT-J); ``rotary_dim`` then is given as well.
        rotary_dim: Rotated dimensions of each head.
        is_interleaved: Whether a rotated pair stands side by side in the weights. Rows are then reordered when the
            weights are read.
        is_reversed: Whether heads are turned the other way round (nanochat).
        is_wide: Whether heads are rotated in float32 and then rounded to the model's dtype (DeepSeek-V2); given with
            latent attention alone.
        has_length_scales: Whether LongRoPE's settings have factors of cosines and sines, ``short_mscale`` and
            ``long_mscale``, which alone tell long sequences from short ones (Phi-3.5-MoE, as transformers computes it).
    """

    module: str = "rotary_emb"
    layer_type: str | None = None
    theta: float | None = None
    rotary_dim: int = 0
    is_interleaved: bool = False
    is_reversed: bool = False
    is_wide: bool = False
    has_length_scales: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionDescription:
    """A layer's attention.

    Attributes:
        qkv: Queries, keys and values.
        out: From the heads back to the hidden size.
        scaling: Factor of the scores.
        is_grouped: Whether the rows of ``qkv`` stand group by group: the queries that share a key, the key, the value
            (GPT-NeoX, Falcon). Else all queries come first, then all keys, then all values.
        rotary: Rotary positions, or None.
        query_norm: Norm of the queries, or None.
        key_norm: Norm of the keys; given exactly when ``query_norm`` is.
        norm_scope: See ``LayerAttention``.
        window: See ``LayerAttention``.
        score_cap: See ``LayerAttention``.
        clip: See ``LayerAttention``.
        query_growth: See ``LayerAttention``: ``(beta, original context)``.
        sinks: The parameter of the sinks, see ``LayerAttention``; or None.
        has_gate: Whether attention's result is multiplied by the sigmoid of a gate (Qwen3-Next). ``qkv`` then yields,
            in the place of each query head, the query and its gate.
        is_gate_apart: Whether gates stand behind the values in ``qkv`` instead (AFMoE).
        gates_heads: Whether a gate is one number for each head (LFM3); given with ``is_gate_apart``.
        cache: What the layer keeps of a token, where neither ``latent`` nor the model says that for it.
        latent: Latent attention, or None. ``cache``, ``query_norm``, ``clip`` and ``is_grouped`` have no meaning beside
            it.
        value_norm: Norm of the values, or None.
        has_values_of_keys: See ``LayerAttention``.
    """

    qkv: ProjectionDescription
    out: ProjectionDescription
    scaling: float
    is_grouped: bool = False
    rotary: RotaryDescription | None = field(default_factory=RotaryDescription)
    query_norm: NormDescription | None = None
    key_norm: NormDescription | None = None
    norm_scope: NormScope = "head"
    window: int | None = None
    score_cap: float | None = None
    clip: float | None = None
    query_growth: tuple[float, int] | None = None
    sinks: str | None = None
    has_gate: bool = False
    is_gate_apart: bool = False
    gates_heads: bool = False
    cache: CacheShape | None = None
    latent: LatentDescription | None = None
    value_norm: NormDescription | None = None
    has_values_of_keys: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForwardDescription:
    """A layer's feed-forward.

    Attributes:
        inner: Gate and up projection, or the up projection alone.
        outer: Back to the hidden size.
        activation: A key of ``ACTIVATIONS``, or ``xielu``.
        is_gated: Whether the activation is applied to a gate.
        activation_module: The module that holds the activation's own weights (xIELU).
        sparsity: See ``SparseActivation``; 0 for none (Gemma 3n).
    """

    inner: ProjectionDescription
    outer: ProjectionDescription
    activation: str
    is_gated: bool = True
    activation_module: str = "mlp.act_fn"
    sparsity: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDescription:
    """A transformer layer; names are relative to the layer's module.

    The fields are those of ``DecoderLayer``; ``experts`` take the place of ``feed_forward`` where they are given, or
    stand beside it where ``beside`` is given too. A layer has attention, a recurrence, or both side by side on the same
    input (Falcon-H1). One that has neither is a feed-forward alone, and one without feed-forward and experts is
    attention or a recurrence alone (Nemotron-H). The buffer ``scale`` holds the layer's scale.
    """

    attention_norm: NormDescription | None
    attention: AttentionDescription | None
    recurrence: RecurrenceDescription | None = None
    feed_forward_norm: NormDescription | None
    feed_forward: FeedForwardDescription | None
    attention_out_norm: NormDescription | None = None
    feed_forward_out_norm: NormDescription | None = None
    residual_scale: float = 1.0
    is_parallel: bool = False
    experts: ExpertsDescription | None = None
    beside: BesideDescription | None = None
    layer_input: LayerInputDescription | None = None
    scale: str | None = None
    altup: AltUpDescription | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """A whole model; names outside the layers are relative to the base model (the model without its head).

    Attributes:
        num_heads: Query heads of a layer.
        num_kv_heads: Key-value heads of a layer that has no ``cache`` of its own.
        head_dim: Width of a head in such a layer.
        stack: The module that is the list of layers.
        layers: Its layers, in order.
        embedding: The token embedding's module.
        embedding_scale: Factor of the embedded tokens.
        rounds_embedding_scale: Whether that factor is rounded to the model's dtype first (Gemma).
        embedding_norm: Norm of the embedded tokens, or None.
        positions: The module of learned positions, or None.
        position_offset: Rows of the learned positions before that of position 0 (OPT).
        final_norm: Norm after the last layer.
        logit_scale: Factor of the logits.
        logit_cap: Bound of the logits, or None: ``cap * tanh(logits / cap)``.
        layer_inputs: What makes the inputs of layers beside the residual, or None. Given exactly where each layer has a
            ``layer_input``.
        streams: Several residual streams, or None for one. Given exactly where each layer has ``altup``.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    stack: str = "layers"
    layers: tuple[LayerDescription, ...]
    embedding: str = "embed_tokens"
    embedding_scale: float = 1.0
    rounds_embedding_scale: bool = False
    embedding_norm: NormDescription | None = None
    positions: str | None = None
    position_offset: int = 0
    final_norm: NormDescription
    logit_scale: float = 1.0
    logit_cap: float | None = None
    layer_inputs: LayerInputsDescription | None = None
    streams: StreamsDescription | None = None

    @property
    def attentions(self) -> tuple[AttentionDescription, ...]:
        """The attention of each layer that has one, in order."""
        return tuple(layer.attention for layer in self.layers if layer.attention is not None)

    @property
    def qkv_width(self) -> int:
        """Queries, keys and values of a token, gates aside."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def activations(self) -> frozenset[str]:
        """The activations of its layers; a convolution without one has none."""
        parts = [
            part
            for layer in self.layers
            for part in (layer.feed_forward, layer.experts, layer.recurrence, layer.layer_input)
            if part is not None and not isinstance(part, ShortConvDescription)
        ]
        return frozenset(part.activation for part in parts)

    @property
    def projections(self) -> tuple[ProjectionDescription, ...]:
        """The matrix products of its layers, experts and heads aside."""
        found = []
        for layer in self.layers:
            if layer.attention is not None:
                found += [layer.attention.qkv, layer.attention.out]
            if layer.recurrence is not None:
                found += [layer.recurrence.inner, layer.recurrence.out]
            if layer.feed_forward is not None:
                found += [layer.feed_forward.inner, layer.feed_forward.outer]
        return tuple(found)

    @property
    def plain_matrices(self) -> frozenset[str]:
        """The matrices that are kept as plain numbers, by their names in a layer.

        They are routers, gates, latents' matrices, and those of a selective scan.
        """
        experts = [layer.experts for layer in self.layers if layer.experts is not None]
        kept = {own.router.weight.removesuffix(".weight") for own in experts}
        kept |= {own.shared_gate.names[0] for own in experts if own.shared_gate is not None}
        scans = [one.recurrence for one in self.layers if isinstance(one.recurrence, SelectiveScanDescription)]
        kept |= {name for scan in scans for name in (scan.selection, scan.steps)}
        kept |= {name for layer in self.layers if layer.altup is not None for name in layer.altup.plain_matrices}
        return frozenset(kept | {own.latent.matrix for own in self.attentions if own.latent is not None})

    @property
    def decoded_matrices(self) -> frozenset[str]:
        """The matrices that do not stay in blocks, by their names in a layer.

        They are those kept as plain numbers, those whose rows have factors, those whose results are added before
        anything else is done with them, and the table that each layer's own input is read from.
        """
        decoded = {name for one in self.projections if one.factors for name in one.names}
        if self.layer_inputs is not None:
            decoded.add(self.layer_inputs.table)
        for layer in self.layers:
            if layer.attention is not None and layer.recurrence is not None:
                decoded |= {*layer.attention.out.names, *layer.recurrence.out.names}
        return self.plain_matrices | decoded

    @property
    def is_recurrent(self) -> bool:
        """Whether some layer carries a state instead of keys and values."""
        return any(layer.recurrence is not None for layer in self.layers)

    @property
    def geometry(self) -> CacheGeometry:
        """Shapes of its keys and values."""
        return CacheGeometry(layers=tuple(map(self.cache_of, self.attentions)))

    def cache_of(self, attention: AttentionDescription) -> CacheShape:
        """What a layer with this attention keeps of a token."""
        if attention.latent is not None:
            return attention.latent.cache
        return attention.cache or CacheShape(num_kv_heads=self.num_kv_heads, head_dim=self.head_dim)

    def with_layers(self, change: Callable[[int, LayerDescription], LayerDescription]) -> ModelDescription:
        """The same model with ``change(index, layer)`` in place of each layer."""
        return replace(self, layers=tuple(change(index, layer) for index, layer in enumerate(self.layers)))

    def with_attention(self, change: Callable[[int, AttentionDescription], AttentionDescription]) -> ModelDescription:
        """The same model with ``change(index, attention)`` in place of the attention of each layer that has one."""
        return self.with_layers(
            lambda index, layer: (
                layer if layer.attention is None else replace(layer, attention=change(index, layer.attention))
            )
        )

    def with_feed_forward(
        self, change: Callable[[int, FeedForwardDescription], FeedForwardDescription]
    ) -> ModelDescription:
        """The same model with ``change(index, feed_forward)`` in place of the feed-forward of each layer with one."""
        return self.with_layers(
            lambda index, layer: (
                layer if layer.feed_forward is None else replace(layer, feed_forward=change(index, layer.feed_forward))
            )
        )
