"""nanochat: RMS norms without weights, also of embeddings and of rotated heads, and a bound of the logits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import RotaryDescription
from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import plain_feed_forward, without_weight

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import AttentionDescription, LayerDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = without_weight("rms", config.rms_norm_eps)

    def changed(_: int, layer: LayerDescription) -> LayerDescription:
        return replace(layer, feed_forward=plain_feed_forward(config.hidden_act, "mlp.fc1", "mlp.fc2"))

    def attending(_: int, own: AttentionDescription) -> AttentionDescription:
        return replace(
            own,
            rotary=RotaryDescription(is_reversed=True),
            query_norm=norm("self_attn.q_norm"),
            key_norm=norm("self_attn.k_norm"),
            norm_scope="rotated",
        )

    return replace(
        llama.describe(config, norm).with_layers(changed).with_attention(attending),
        embedding_norm=norm("norm"),
        logit_cap=config.final_logit_softcapping,
    )


FAMILY = Family("nanochat", "NanoChatForCausalLM", describe)
