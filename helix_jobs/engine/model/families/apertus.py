"""Apertus: Llama with norms of queries and keys, and an ungated feed-forward whose activation has weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import plain_feed_forward, rms_norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import LayerDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = rms_norm(config.rms_norm_eps)

    def changed(_: int, layer: LayerDescription) -> LayerDescription:
        return replace(
            layer,
            attention_norm=norm("attention_layernorm"),
            feed_forward_norm=norm("feedforward_layernorm"),
            feed_forward=plain_feed_forward(config.hidden_act),
        )

    model = llama.describe(config).with_layers(changed)
    return model.with_attention(
        lambda _, own: replace(own, query_norm=norm("self_attn.q_norm"), key_norm=norm("self_attn.k_norm"))
    )


FAMILY = Family("apertus", "ApertusForCausalLM", describe, needs_transformers_5=True)
