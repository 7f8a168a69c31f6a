"""Gemma 4: Gemma 3 with heads of two sizes, normed values, scaled layers, and shared keys, layer inputs or experts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.attention.cache_geometry import CacheShape
from helix_jobs.engine.model.description import RotaryDescription, UnsupportedSettingError
from helix_jobs.engine.model.expert_description import BesideDescription
from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import (
    FULL,
    layer_types,
    projection,
    rms_norm,
    with_windows,
    without_weight,
)
from helix_jobs.engine.model.families.shared_keys import is_unread, key_sources
from helix_jobs.engine.model.families.sparse import experts, router
from helix_jobs.engine.model.layer_input_description import LayerInputDescription, LayerInputsDescription

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import AttentionDescription, LayerDescription, ModelDescription

# What a layer's part of the configuration may say.
_BY_LAYER: Final = {"head_dim", "num_key_value_heads"}


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm, types, shapes = rms_norm(config.rms_norm_eps), layer_types(config), _shapes(config)

    def attending(index: int, own: AttentionDescription) -> AttentionDescription:
        is_own = shapes[index].source is None
        has_values = is_own and not (config.attention_k_eq_v and types[index] == FULL)
        names = ("q_proj", *("k_proj",) * is_own, *("v_proj",) * has_values)
        return replace(
            own,
            qkv=projection(*(f"self_attn.{name}" for name in names)),
            scaling=1.0,
            query_norm=norm("self_attn.q_norm"),
            key_norm=norm("self_attn.k_norm") if is_own else None,
            value_norm=without_weight("rms", config.rms_norm_eps)("self_attn.v_norm") if is_own else None,
            has_values_of_keys=is_own and not has_values,
            rotary=RotaryDescription(layer_type=types[index]),
            cache=shapes[index],
        )

    def changed(_: int, layer: LayerDescription) -> LayerDescription:
        layer = replace(
            layer,
            attention_out_norm=norm("post_attention_layernorm"),
            feed_forward_norm=norm("pre_feedforward_layernorm"),
            feed_forward_out_norm=norm("post_feedforward_layernorm"),
            scale="layer_scalar",
        )
        if config.hidden_size_per_layer_input:
            layer = replace(layer, layer_input=_layer_input(config))
        return _with_experts(layer, config) if config.enable_moe_block else layer

    model = llama.describe(config, norm, str(config.hidden_activation)).with_layers(changed).with_attention(attending)
    return replace(
        with_windows(model, config),
        embedding_scale=config.hidden_size**0.5,
        rounds_embedding_scale=True,
        logit_cap=config.final_logit_softcapping,
        layer_inputs=_layer_inputs(config) if config.hidden_size_per_layer_input else None,
    )


def _shapes(config: PretrainedConfig) -> list[CacheShape]:
    """What each layer keeps: as its kind says; the last layers keep nothing and read the last of their kind before."""
    shapes = [_own_shape(config, index) for index in range(config.num_hidden_layers)]
    for index, source in enumerate(key_sources(config, layer_types(config))):
        if source is None:
            continue
        if shapes[source] != shapes[index]:
            raise UnsupportedSettingError(
                f"has num_kv_shared_layers {config.num_kv_shared_layers}, and heads of another size in layer {index}"
            )
        shapes[index] = replace(shapes[index], source=source)
    return shapes


def _own_shape(config: PretrainedConfig, index: int) -> CacheShape:
    stated = config.to_dict().get("per_layer_config") or {}
    unread = sorted({key for one in stated.values() for key in one} - _BY_LAYER)
    if unread:
        raise UnsupportedSettingError(f"sets {unread[0]!r:.60} by layer; supported are {', '.join(sorted(_BY_LAYER))}")
    own = config.per_layer_config[index]
    heads, width = own.num_key_value_heads, own.head_dim
    if any(type(number) is not int or number < 1 for number in (heads, width)) or config.num_attention_heads % heads:
        raise UnsupportedSettingError(
            f"has in layer {index} num_key_value_heads {heads!r:.40} and head_dim {width!r:.40}"
        )
    return CacheShape(num_kv_heads=heads, head_dim=width)


def _layer_inputs(config: PretrainedConfig) -> LayerInputsDescription:
    if config.vocab_size_per_layer_input < config.vocab_size:
        raise UnsupportedSettingError(
            f"has vocab_size_per_layer_input {config.vocab_size_per_layer_input}, less than its vocab_size "
            f"{config.vocab_size}"
        )
    return LayerInputsDescription(
        table="embed_tokens_per_layer",
        projection=projection("per_layer_model_projection"),
        norm=rms_norm(config.rms_norm_eps)("per_layer_projection_norm"),
        width=config.hidden_size_per_layer_input,
    )


def _layer_input(config: PretrainedConfig) -> LayerInputDescription:
    return LayerInputDescription(
        gate=projection("per_layer_input_gate"),
        projection=projection("per_layer_projection"),
        norm=rms_norm(config.rms_norm_eps)("post_per_layer_input_norm"),
        activation=str(config.hidden_activation),
    )


def _with_experts(layer: LayerDescription, config: PretrainedConfig) -> LayerDescription:
    norm = rms_norm(config.rms_norm_eps)
    choice = router(
        config.num_experts,
        config.top_k_experts,
        "router.proj.weight",
        norm="router.scale",
        norm_scale=config.hidden_size**-0.5,
        norm_eps=float(config.rms_norm_eps),
        expert_scale="router.per_expert_scale",
    )
    return replace(
        layer,
        feed_forward_norm=None,
        experts=replace(
            experts(str(config.hidden_activation), choice), inner="experts.gate_up_proj", outer="experts.down_proj"
        ),
        beside=BesideDescription(
            dense_norm=norm("pre_feedforward_layernorm"),
            dense_out_norm=norm("post_feedforward_layernorm_1"),
            experts_norm=norm("pre_feedforward_layernorm_2"),
            experts_out_norm=norm("post_feedforward_layernorm_2"),
        ),
    )


FAMILY = Family("gemma4_text", "Gemma4ForCausalLM", describe, needs_transformers_5=True, is_unread=is_unread)
