"""Gemma 2: Gemma with norms before and after each part, bounds of scores and logits, and a window in some layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import rms_norm, with_windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import AttentionDescription, LayerDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = rms_norm(config.rms_norm_eps, offset=1.0)

    def changed(_: int, layer: LayerDescription) -> LayerDescription:
        return replace(
            layer,
            attention_out_norm=norm("post_attention_layernorm"),
            feed_forward_norm=norm("pre_feedforward_layernorm"),
            feed_forward_out_norm=norm("post_feedforward_layernorm"),
        )

    def attending(_: int, own: AttentionDescription) -> AttentionDescription:
        return replace(own, scaling=config.query_pre_attn_scalar**-0.5, score_cap=config.attn_logit_softcapping)

    model = llama.describe(config, norm, str(config.hidden_activation)).with_layers(changed).with_attention(attending)
    return replace(
        with_windows(model, config),
        embedding_scale=config.hidden_size**0.5,
        rounds_embedding_scale=True,
        logit_cap=config.final_logit_softcapping,
    )


FAMILY = Family("gemma2", "Gemma2ForCausalLM", describe)
