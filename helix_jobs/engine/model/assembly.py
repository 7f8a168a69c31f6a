"""From a description and a loaded transformers model to a ``Decoder``.

The model is consumed layer by layer, and weights that are not stacked are copied, because transformers hands out views
of the mapped file. If that file were cut short while mapped, reading a missing page would kill the process. Mapped
pages also count as the process's memory.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from helix_jobs.engine.attention.backend import AttentionSpec, LayerAttention
from helix_jobs.engine.attention.dense import DenseAttention
from helix_jobs.engine.attention.query_factor import QueryFactor
from helix_jobs.engine.attention.rotary import LongFrequencies, RotaryTable, WideRotaryTable
from helix_jobs.engine.model.activations import ACTIVATIONS
from helix_jobs.engine.model.altup_assembly import build_altup, build_streams
from helix_jobs.engine.model.decoder import Decoder
from helix_jobs.engine.model.decoder_layer import DecoderLayer
from helix_jobs.engine.model.expert_assembly import build_experts
from helix_jobs.engine.model.experts_beside import ExpertsBeside
from helix_jobs.engine.model.families.registry import describe
from helix_jobs.engine.model.feed_forward import GatedFeedForward, NoFeedForward, PlainFeedForward
from helix_jobs.engine.model.latents import latent_heads, latent_products
from helix_jobs.engine.model.layer_inputs import LayerInput, LayerInputs
from helix_jobs.engine.model.linear_origin import Origins
from helix_jobs.engine.model.mapped_pages import MappedPages
from helix_jobs.engine.model.placement import Placement
from helix_jobs.engine.model.recurrences import build_recurrence, recurrent_products
from helix_jobs.engine.model.rope_settings import LONG_ROPE, long_layer_type, named, original_contexts, rope_settings
from helix_jobs.engine.model.row_order import gated_order, pair_order, row_order
from helix_jobs.engine.model.stored_parts import StoredParts

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from helix_jobs.engine.model.description import (
        AttentionDescription,
        FeedForwardDescription,
        LayerDescription,
        ModelDescription,
        NormDescription,
        RotaryDescription,
    )
    from helix_jobs.engine.model.feed_forward import FeedForward
    from helix_jobs.engine.model.layer_input_description import LayerInputDescription
    from helix_jobs.engine.model.norms import Norm
    from helix_jobs.engine.model.query_lift import QueryLift
    from helix_jobs.engine.weights.block_matrix import Matrix
    from helix_jobs.engine.weights.linear import Linear


def build_decoder(
    model: PreTrainedModel, placement: Placement | None = None, *, keeps_origins: bool = False
) -> Decoder:
    """Take a causal language model apart; its configuration has passed ``check_architecture``.

    The model cannot be used afterwards.

    Args:
        model: The model; on the host if its weights are to be placed elsewhere.
        placement: Dtype and device of the decoder; the model's own by default.
        keeps_origins: Keep what its linear layers are made of, as adapters need it.

    Raises:
        Float16OverflowError: See ``Placement``.
    """
    with torch.no_grad():
        made = _Assembly(model, describe(model.config), placement or Placement.of(model)).decoder()
    return made if keeps_origins else replace(made, origins=())


class _Assembly:
    """One model on its way to a decoder."""

    def __init__(self, model: Any, description: ModelDescription, place: Placement) -> None:  # noqa: ANN401  (its modules' attributes are Tensor | Module)
        self._model = model
        self._description = description
        self._place = place
        self._pages = MappedPages()
        # By description and width of heads.
        self._rotaries: dict[tuple[RotaryDescription, int], RotaryTable] = {}
        self._hidden_size = int(model.base_model.get_submodule(description.embedding).weight.shape[1])

    def decoder(self) -> Decoder:
        description, place = self._description, self._place
        origins = Origins()
        outer = StoredParts(self._model.base_model, place, origins)
        stack = outer.module(description.stack)
        layers, attentions = [], []
        for index, layer in enumerate(description.layers):
            parts = StoredParts(stack[index], place, origins.inside(f"{description.stack}.{index}"))
            if layer.attention is not None:
                attentions.append(self._layer_attention(parts, layer.attention))
            layers.append(self._layer(parts, layer))
            self._pages.give_back(stack[index])
            stack[index] = nn.Identity()
        embedding, head = self._embedding_and_head(outer)
        positions = None if description.positions is None else outer.module(description.positions).weight
        scale = description.embedding_scale
        if description.rounds_embedding_scale:
            scale = float(torch.tensor(scale, dtype=place.dtype))
        decoder = Decoder(
            attention=DenseAttention(
                AttentionSpec(
                    geometry=description.geometry,
                    num_heads=description.num_heads,
                    layers=tuple(attentions),
                )
            ),
            embedding=embedding,
            layers=tuple(layers),
            final_norm=outer.norm(description.final_norm, embedding.shape[1]),
            head=head,
            dtype=place.dtype,
            device=place.device,
            embedding_scale=scale,
            embedding_norm=_optional(outer, description.embedding_norm, embedding.shape[1]),
            position_embedding=None if positions is None else place.take(positions[description.position_offset :]),
            logit_scale=description.logit_scale,
            logit_cap=description.logit_cap,
            layer_inputs=self._layer_inputs(outer),
            streams=None if description.streams is None else build_streams(outer, description.streams),
        )
        return replace(decoder, origins=origins.of(decoder.linears()))

    def _embedding_and_head(self, outer: StoredParts) -> tuple[Matrix, Linear]:
        """The largest matrices: the model lets go of each as soon as it is taken."""
        module, head = outer.module(self._description.embedding), self._model.get_output_embeddings()
        is_tied = head.weight is module.weight
        embedding = self._place.take_matrix(module.weight)
        self._pages.give_back(module)
        module.weight = None
        made = outer.head(head, embedding if is_tied else None)
        self._pages.give_back(head)
        head.weight = None
        return embedding, made

    def _layer(self, parts: StoredParts, layer: LayerDescription) -> DecoderLayer:
        own, recurrence = layer.attention, layer.recurrence
        inner, out, lift = self._products(parts, layer)
        size = self._hidden_size
        return DecoderLayer(
            attention_norm=_optional(parts, layer.attention_norm, size),
            qkv=inner,
            attention_out=out,
            feed_forward_norm=_optional(parts, layer.feed_forward_norm, size),
            feed_forward=self._feed_forward(parts, layer, size),
            attention_out_norm=_optional(parts, layer.attention_out_norm, size),
            feed_forward_out_norm=_optional(parts, layer.feed_forward_out_norm, size),
            residual_scale=layer.residual_scale,
            is_parallel=layer.is_parallel,
            recurrence=None if recurrence is None else build_recurrence(parts, recurrence),
            attention_width=0 if own is None or recurrence is None else self._description.qkv_width,
            has_gate=own is not None and own.has_gate,
            gates_heads=own is not None and own.gates_heads,
            query_lift=lift,
            layer_input=None if layer.layer_input is None else _layer_input(parts, layer.layer_input, size),
            altup=None if layer.altup is None else build_altup(parts, layer.altup, size),
            scale=1.0 if layer.scale is None else float(parts.tensor(layer.scale).to(self._place.dtype)),
        )

    def _products(
        self, parts: StoredParts, layer: LayerDescription
    ) -> tuple[Linear | None, Linear | None, QueryLift | None]:
        """The products before and behind a layer's attention or recurrence, or None where it has neither.

        The last one is the second product of queries that are made in two.
        """
        own, recurrence = layer.attention, layer.recurrence
        if own is None:
            return (None, None, None) if recurrence is None else (*recurrent_products(parts, recurrence), None)
        if recurrence is None:
            inner, lift = self._qkv(parts, own)
            return inner, parts.linear(own.out), lift
        assert own.latent is None, "no family has it beside a recurrence"
        in_order = (own.has_gate, own.is_grouped, self._interleaved_dim(own)) == (False, False, 0)
        assert in_order, "no family has other rows side by side"
        return parts.linear(own.qkv.beside(recurrence.inner)), parts.summed((own.out, recurrence.out)), None

    def _feed_forward(self, parts: StoredParts, layer: LayerDescription, size: int) -> FeedForward:
        if layer.experts is None:
            return NoFeedForward() if layer.feed_forward is None else _feed_forward(parts, layer.feed_forward)
        experts = build_experts(parts, self._place, layer.experts, partial(_feed_forward, parts))
        if layer.beside is None:
            return experts
        assert layer.feed_forward is not None, "experts stand beside a feed-forward"
        return ExpertsBeside(
            dense=_feed_forward(parts, layer.feed_forward),
            experts=experts,
            dense_norm=parts.norm(layer.beside.dense_norm, size),
            dense_out_norm=parts.norm(layer.beside.dense_out_norm, size),
            experts_norm=parts.norm(layer.beside.experts_norm, size),
            experts_out_norm=parts.norm(layer.beside.experts_out_norm, size),
        )

    def _layer_inputs(self, outer: StoredParts) -> LayerInputs | None:
        own = self._description.layer_inputs
        if own is None:
            return None
        projection = outer.linear(own.projection)
        return LayerInputs(
            table=self._place.take(outer.module(own.table).weight),
            projection=projection,
            norm=outer.norm(own.norm, own.width),
            width=own.width,
            # Rounded to the model's dtype, as the embedding's scale is.
            table_scale=float(torch.tensor(own.width**0.5, dtype=self._place.dtype)),
            projection_scale=projection.in_features**-0.5,
            has_every_token=own.has_every_token,
        )

    def _qkv(self, parts: StoredParts, own: AttentionDescription) -> tuple[Linear, QueryLift | None]:
        """What attention reads: one product, and the second one of queries that are made in two."""
        if own.latent is not None:
            is_interleaved = own.rotary is not None and own.rotary.is_interleaved
            num_heads = self._description.num_heads
            return latent_products(parts, own.qkv, own.latent, num_heads, is_interleaved=is_interleaved)
        cache = self._description.cache_of(own)
        shape = (self._description.num_heads, cache.num_new_heads, cache.head_dim)
        if own.has_gate and not own.is_gate_apart:
            assert not own.is_grouped, "no family has both"
            return parts.linear(own.qkv, gated_order(*shape)), None
        order = row_order(
            *shape,
            is_grouped=own.is_grouped,
            interleaved_dim=self._interleaved_dim(own),
        )
        return parts.linear(own.qkv, order), None

    def _layer_attention(self, parts: StoredParts, own: AttentionDescription) -> LayerAttention:
        if own.latent is not None:
            assert own.rotary is not None, "latents have a rotated key beside them"
            return LayerAttention(
                scaling=own.scaling,
                rotary=self._rotary(own.rotary, own.latent.rotary_dim),
                latent=latent_heads(parts, self._place, own.latent, self._description.num_heads),
            )
        assert own.rotary is None or not own.rotary.is_wide, "compiled kernels read tables of the model's dtype"
        head_dim, interleaved_dim = self._description.cache_of(own).head_dim, self._interleaved_dim(own)
        order = pair_order(head_dim, interleaved_dim) if interleaved_dim else None
        growth = own.query_growth
        return LayerAttention(
            scaling=own.scaling,
            query_norm=_optional(parts, own.query_norm, head_dim, order),
            key_norm=_optional(parts, own.key_norm, head_dim, order),
            value_norm=_optional(parts, own.value_norm, head_dim),
            has_values_of_keys=own.has_values_of_keys,
            norm_scope=own.norm_scope,
            rotary=None if own.rotary is None else self._rotary(own.rotary, head_dim),
            window=own.window,
            score_cap=own.score_cap,
            clip=own.clip,
            query_factor=None if growth is None else QueryFactor(*growth, self._place.dtype, self._place.device),
            sinks=None if own.sinks is None else self._place.move(parts.tensor(own.sinks).float().clone()),
        )

    def _interleaved_dim(self, own: AttentionDescription) -> int:
        """Leading dimensions of each head whose rotated pairs are stored side by side."""
        if own.rotary is None or not own.rotary.is_interleaved:
            return 0
        return self._rotary(own.rotary, self._description.cache_of(own).head_dim).rotary_dim

    def _rotary(self, rotary: RotaryDescription, head_dim: int) -> RotaryTable:
        if (rotary, head_dim) not in self._rotaries:
            long = _long_frequencies(self._model.config, rotary)
            frequencies, scaling = _frequencies(self._model.base_model, rotary, has_long=long is not None)
            if rotary.has_length_scales:
                frequencies, scaling, long = _with_length_scales(self._model.config, frequencies, scaling, long)
            if rotary.is_reversed:
                frequencies = -frequencies
            dtype, device = self._place.dtype, self._place.device
            self._rotaries[rotary, head_dim] = (
                WideRotaryTable(frequencies, scaling, head_dim, device, long=long)
                if rotary.is_wide and dtype is not torch.float32
                else RotaryTable(frequencies, scaling, head_dim, dtype, device, long=long)
            )
        return self._rotaries[rotary, head_dim]


def _frequencies(base: nn.Module, rotary: RotaryDescription, *, has_long: bool) -> tuple[torch.Tensor, float]:
    """A rotary module's inverse frequencies ``[rotary_dim / 2]``, and its factor of cosines and sines."""
    if rotary.theta is not None:
        exponents = torch.arange(0, rotary.rotary_dim, 2, dtype=torch.int64).float() / rotary.rotary_dim
        return 1.0 / rotary.theta**exponents, 1.0
    module: Any = base.get_submodule(rotary.module)
    prefix = "" if rotary.layer_type is None else f"{rotary.layer_type}_"
    # With LongRoPE, a forward of transformers' own leaves the long frequencies in the place of the short ones.
    name = "original_inv_freq" if has_long else "inv_freq"
    return getattr(module, f"{prefix}{name}"), float(getattr(module, f"{prefix}attention_scaling"))


def _long_frequencies(config: PretrainedConfig, rotary: RotaryDescription) -> LongFrequencies | None:
    """The frequencies of sequences beyond the original context, where the scaling has others for them (LongRoPE)."""
    if rotary.theta is not None or not long_layer_type(config, rotary.layer_type):
        return None
    assert not rotary.is_reversed, "no family has both"
    for original in original_contexts(config):
        kind = {} if rotary.layer_type is None else {"layer_type": rotary.layer_type}
        inverse, scaling = ROPE_INIT_FUNCTIONS[LONG_ROPE](config, torch.device("cpu"), seq_len=original + 1, **kind)
        return LongFrequencies(original, inverse, scaling)
    return None


def _with_length_scales(
    config: PretrainedConfig, frequencies: torch.Tensor, scaling: float, long: LongFrequencies | None
) -> tuple[torch.Tensor, float, LongFrequencies | None]:
    """The same frequencies for all lengths, with the settings' own factors, see ``RotaryDescription``."""
    (settings,) = rope_settings(config)
    if named(settings) != LONG_ROPE:
        return frequencies, scaling, long
    if long is not None:
        long = replace(long, inverse=frequencies, scaling=float(settings["long_mscale"]))
    return frequencies, float(settings["short_mscale"]), long


def _optional(
    parts: StoredParts, norm: NormDescription | None, size: int, order: torch.Tensor | None = None
) -> Norm | None:
    return None if norm is None else parts.norm(norm, size, order)


def _layer_input(parts: StoredParts, own: LayerInputDescription, size: int) -> LayerInput:
    gate, projection = parts.linear(own.gate), parts.linear(own.projection)
    return LayerInput(
        gate=gate, projection=projection, norm=parts.norm(own.norm, size), activation=ACTIVATIONS[own.activation]
    )


def _feed_forward(parts: StoredParts, description: FeedForwardDescription) -> FeedForward:
    inner, outer = parts.linear(description.inner), parts.linear(description.outer)
    activation = parts.activation(description)
    if description.is_gated:
        return GatedFeedForward(inner, outer, activation)
    return PlainFeedForward(inner, outer, activation)
