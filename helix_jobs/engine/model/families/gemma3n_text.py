"""Gemma 3n: residual streams (AltUp), a learned residual (LAuReL), inputs of each layer, sparse gates, shared keys."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.attention.cache_geometry import CacheShape
from helix_jobs.engine.model.altup_description import AltUpDescription, StreamsDescription
from helix_jobs.engine.model.description import RotaryDescription, UnsupportedSettingError
from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_types, projection, rms_norm, with_windows, without_weight
from helix_jobs.engine.model.families.shared_keys import is_unread, key_sources
from helix_jobs.engine.model.layer_input_description import LayerInputDescription, LayerInputsDescription

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import (
        AttentionDescription,
        FeedForwardDescription,
        LayerDescription,
        ModelDescription,
    )


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm, types = rms_norm(config.rms_norm_eps), layer_types(config)
    sources, streams = key_sources(config, types), _num_streams(config)
    sparsities = _sparsities(config)
    shape = CacheShape(num_kv_heads=config.num_key_value_heads, head_dim=config.head_dim)

    def attending(index: int, own: AttentionDescription) -> AttentionDescription:
        is_own = sources[index] is None
        return replace(
            own,
            qkv=projection(*(f"self_attn.{name}" for name in ("q_proj", *("k_proj", "v_proj") * is_own))),
            scaling=1.0,
            query_norm=norm("self_attn.q_norm"),
            key_norm=norm("self_attn.k_norm") if is_own else None,
            value_norm=without_weight("rms", config.rms_norm_eps)("self_attn.v_norm") if is_own else None,
            rotary=RotaryDescription(layer_type=types[index]),
            cache=replace(shape, source=sources[index]),
        )

    def changed(_: int, layer: LayerDescription) -> LayerDescription:
        return replace(
            layer,
            attention_out_norm=norm("post_attention_layernorm"),
            feed_forward_norm=norm("pre_feedforward_layernorm"),
            feed_forward_out_norm=norm("post_feedforward_layernorm"),
            layer_input=LayerInputDescription(
                gate=projection("per_layer_input_gate"),
                projection=projection("per_layer_projection"),
                norm=norm("post_per_layer_input_norm"),
                activation=str(config.hidden_activation),
            ),
            altup=_altup(config),
        )

    def sparse(index: int, own: FeedForwardDescription) -> FeedForwardDescription:
        return replace(own, sparsity=sparsities[index])

    model = llama.describe(config, norm, str(config.hidden_activation)).with_layers(changed).with_attention(attending)
    return replace(
        with_windows(model.with_feed_forward(sparse), config),
        embedding_scale=config.hidden_size**0.5,
        rounds_embedding_scale=True,
        logit_cap=config.final_logit_softcapping,
        layer_inputs=LayerInputsDescription(
            table="embed_tokens_per_layer",
            projection=projection("per_layer_model_projection"),
            norm=norm("per_layer_projection_norm"),
            width=config.hidden_size_per_layer_input,
            has_every_token=config.vocab_size_per_layer_input >= config.vocab_size,
        ),
        streams=StreamsDescription(
            expanding=tuple(projection(f"altup_projections.{index}") for index in range(streams - 1)),
            merging=tuple(projection(f"altup_unembed_projections.{index}") for index in range(streams - 1)),
        ),
    )


def _altup(config: PretrainedConfig) -> AltUpDescription:
    norm = rms_norm(config.rms_norm_eps)
    return AltUpDescription(
        norm=norm("altup.router_norm"),
        router="altup.modality_router",
        prediction="altup.prediction_coefs",
        correction="altup.correction_coefs",
        active=config.altup_active_idx,
        scale="altup.correct_output_scale" if config.altup_correct_scale else None,
        laurel_left=projection("laurel.linear_left"),
        laurel_right=projection("laurel.linear_right"),
        laurel_norm=norm("laurel.post_laurel_norm"),
    )


def _num_streams(config: PretrainedConfig) -> int:
    count, active = config.altup_num_inputs, config.altup_active_idx
    if type(count) is not int or count < 2 or type(active) is not int or not 0 <= active < count:  # noqa: PLR2004  (one stream has no other)
        raise UnsupportedSettingError(f"has altup_num_inputs {count!r:.40} and altup_active_idx {active!r:.40}")
    return count


def _sparsities(config: PretrainedConfig) -> list[float]:
    """The share of each layer's gates that is zero, about."""
    found = list(config.activation_sparsity_pattern)
    if len(found) != config.num_hidden_layers or not all(0 <= one < 1 for one in found):
        raise UnsupportedSettingError("has an activation_sparsity_pattern that is no share from 0 to 1 of each layer")
    return [float(one) for one in found]


FAMILY = Family("gemma3n_text", "Gemma3nForCausalLM", describe, needs_transformers_5=True, is_unread=is_unread)
