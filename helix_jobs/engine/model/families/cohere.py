"""Command R and Aya (Cohere): the parts side by side after one layer norm without bias, a factor of the logits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import RotaryDescription
from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import LayerDescription, ModelDescription


def describe_plain(config: PretrainedConfig) -> ModelDescription:
    """The description without norms of queries and keys."""
    norm = layer_norm(config.layer_norm_eps)

    def changed(_: int, layer: LayerDescription) -> LayerDescription:
        return replace(layer, feed_forward_norm=None, is_parallel=True)

    model = llama.describe(config, norm).with_layers(changed)
    model = model.with_attention(lambda _, own: replace(own, rotary=RotaryDescription(is_interleaved=True)))
    return replace(model, logit_scale=float(config.logit_scale))


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    model, norm = describe_plain(config), layer_norm(config.layer_norm_eps)
    if not config.use_qk_norm:
        return model
    return model.with_attention(
        lambda _, own: replace(own, query_norm=norm("self_attn.q_norm"), key_norm=norm("self_attn.k_norm"))
    )


FAMILY = Family("cohere", "CohereForCausalLM", describe)
