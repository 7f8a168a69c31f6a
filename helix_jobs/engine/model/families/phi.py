"""Phi-1.5 and Phi-2: attention and feed-forward side by side after one layer norm, biases, a bias of the head."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_norm, plain_feed_forward, projection

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import AttentionDescription, LayerDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = layer_norm(config.layer_norm_eps)

    def changed(_: int, layer: LayerDescription) -> LayerDescription:
        return replace(
            layer,
            feed_forward_norm=None,
            feed_forward=plain_feed_forward(config.hidden_act, "mlp.fc1", "mlp.fc2"),
            is_parallel=True,
        )

    def attending(_: int, own: AttentionDescription) -> AttentionDescription:
        own = replace(own, out=projection("self_attn.dense"))
        if not config.qk_layernorm:
            return own
        return replace(own, query_norm=norm("self_attn.q_layernorm"), key_norm=norm("self_attn.k_layernorm"))

    model = llama.describe(config, norm).with_layers(changed).with_attention(attending)
    return replace(model, final_norm=norm("final_layernorm"))


FAMILY = Family("phi", "PhiForCausalLM", describe)
