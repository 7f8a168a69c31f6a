"""Falcon-H1: attention and Mamba-2 side by side in every layer, and a factor for each part."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import RowFactor
from helix_jobs.engine.model.families import bamba, llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.mamba_layers import mamba_layer
from helix_jobs.engine.model.families.settings import rms_norm
from helix_jobs.engine.model.recurrence_description import MambaDescription

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import (
        AttentionDescription,
        FeedForwardDescription,
        LayerDescription,
        ModelDescription,
        ProjectionDescription,
    )


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = rms_norm(config.rms_norm_eps)
    mamba, feed_forward = _mamba(config), _feed_forward(config)
    model = (
        llama.describe(config)
        .with_attention(lambda _, own: _attention(config, own))
        .with_layers(
            lambda _, own: replace(
                own, recurrence=mamba, feed_forward_norm=norm("pre_ff_layernorm"), feed_forward=feed_forward
            )
        )
    )
    if all(factor == 1 for factor in _factors(config)):
        model = _without_factors(model)
    return replace(
        model,
        final_norm=norm("final_layernorm"),
        embedding_scale=float(config.embedding_multiplier),
        logit_scale=float(config.lm_head_multiplier),
    )


def _factors(config: PretrainedConfig) -> list[float]:
    """Those of all projections; they are ones in a file that has them in its weights."""
    return [
        config.attention_in_multiplier,
        config.key_multiplier,
        config.attention_out_multiplier,
        config.ssm_in_multiplier,
        *config.ssm_multipliers,
        config.ssm_out_multiplier,
        *config.mlp_multipliers,
    ]


def _without_factors(model: ModelDescription) -> ModelDescription:
    """The same model with projections that are multiplied as they are stored."""

    def plain(own: ProjectionDescription) -> ProjectionDescription:
        return replace(own, factors=())

    def changed(_: int, layer: LayerDescription) -> LayerDescription:
        mamba = layer.recurrence
        assert isinstance(mamba, MambaDescription), "each layer has one"
        return replace(layer, recurrence=replace(mamba, inner=plain(mamba.inner), out=plain(mamba.out)))

    return (
        model.with_attention(lambda _, own: replace(own, qkv=plain(own.qkv), out=plain(own.out)))
        .with_feed_forward(lambda _, own: replace(own, inner=plain(own.inner), outer=plain(own.outer)))
        .with_layers(changed)
    )


def _attention(config: PretrainedConfig, own: AttentionDescription) -> AttentionDescription:
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    given, key = float(config.attention_in_multiplier), float(config.key_multiplier)
    factors = (RowFactor(queries, given, 1.0), RowFactor(keys, given * key, key), RowFactor(keys, given, 1.0))
    return replace(
        own, qkv=replace(own.qkv, factors=factors), out=_times(own.out, config, config.attention_out_multiplier)
    )


def _mamba(config: PretrainedConfig) -> MambaDescription:
    own = mamba_layer(config)
    values, keys = own.num_heads * own.head_dim, own.num_groups * own.state_dim
    counts, given = (values, values, keys, keys, own.num_heads), float(config.ssm_in_multiplier)
    factors = tuple(
        RowFactor(count, given * float(factor), float(factor))
        for count, factor in zip(counts, config.ssm_multipliers, strict=True)
    )
    return replace(
        own,
        inner=replace(own.inner, factors=factors),
        out=_times(own.out, config, config.ssm_out_multiplier),
        has_norm=bool(config.mamba_rms_norm),
        is_gated_last=bool(config.mamba_norm_before_gate),
    )


def _feed_forward(config: PretrainedConfig) -> FeedForwardDescription:
    own = bamba.feed_forward(config)
    gate, down = map(float, config.mlp_multipliers)
    count = config.intermediate_size
    factors = (RowFactor(count, gate, gate), RowFactor(count, 1.0, 1.0))
    return replace(own, inner=replace(own.inner, factors=factors), outer=_times(own.outer, config, down))


def _times(out: ProjectionDescription, config: PretrainedConfig, factor: float) -> ProjectionDescription:
    """The projection to the hidden size, times a factor."""
    return replace(out, factors=(RowFactor(config.hidden_size, float(factor), float(factor)),))


FAMILY = Family("falcon_h1", "FalconH1ForCausalLM", describe, needs_transformers_5=True)
