"""LFM2: gated short convolutions, with full attention in some layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.model.description import (
    AttentionDescription,
    FeedForwardDescription,
    LayerDescription,
    ModelDescription,
    RotaryDescription,
)
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import FULL, head_dim, mixed_types, num_kv_heads, projection, rms_norm
from helix_jobs.engine.model.recurrence_description import ShortConvDescription

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONV: Final = "conv"


def describe(
    config: PretrainedConfig, rotary: RotaryDescription | None = None, windowed: str | None = None
) -> ModelDescription:
    """The model's description.

    Args:
        config: Its configuration.
        rotary: Where its frequencies are, if not where other families have them.
        windowed: The kind of layers with attention that is not full, where there is one.
    """
    norm = rms_norm(config.norm_eps)
    attending = LayerDescription(
        attention_norm=norm("operator_norm"),
        attention=AttentionDescription(
            qkv=projection("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            out=projection("self_attn.out_proj"),
            scaling=head_dim(config) ** -0.5,
            rotary=rotary or RotaryDescription(),
            query_norm=norm("self_attn.q_layernorm"),
            key_norm=norm("self_attn.k_layernorm"),
        ),
        feed_forward_norm=norm("ffn_norm"),
        feed_forward=FeedForwardDescription(
            inner=projection("feed_forward.w1", "feed_forward.w3"),
            outer=projection("feed_forward.w2"),
            activation="silu",
        ),
    )
    convolving = replace(
        attending,
        attention=None,
        recurrence=ShortConvDescription(
            inner=projection("conv.in_proj"), conv="conv.conv", out=projection("conv.out_proj")
        ),
    )
    layers = {FULL: attending, CONV: convolving} | ({} if windowed is None else {windowed: attending})
    return ModelDescription(
        num_heads=config.num_attention_heads,
        num_kv_heads=num_kv_heads(config),
        head_dim=head_dim(config),
        layers=tuple(layers[kind] for kind in mixed_types(config, *sorted({*layers} - {FULL}))),
        final_norm=norm("embedding_norm"),
    )


FAMILY = Family("lfm2", "Lfm2ForCausalLM", describe)
