"""OLMo 2: norms after each part alone, and norms of queries and keys over all heads together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import rms_norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import AttentionDescription, LayerDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = rms_norm(config.rms_norm_eps)

    def changed(_: int, layer: LayerDescription) -> LayerDescription:
        return replace(
            layer,
            attention_norm=None,
            attention_out_norm=norm("post_attention_layernorm"),
            feed_forward_norm=None,
            feed_forward_out_norm=norm("post_feedforward_layernorm"),
        )

    def attending(_: int, own: AttentionDescription) -> AttentionDescription:
        return replace(own, query_norm=norm("self_attn.q_norm"), key_norm=norm("self_attn.k_norm"), norm_scope="row")

    return llama.describe(config).with_layers(changed).with_attention(attending)


FAMILY = Family("olmo2", "Olmo2ForCausalLM", describe)
