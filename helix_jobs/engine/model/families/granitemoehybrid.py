"""Granite 4: Mamba-2 in most layers, Granite's factors, and in the larger models experts beside the feed-forward."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.model.description import FeedForwardDescription
from helix_jobs.engine.model.families import granitemoe, llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.mamba_layers import mamba_layer
from helix_jobs.engine.model.families.settings import FULL, mixed_types, projection

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import LayerDescription, ModelDescription

_MAMBA: Final = "linear_attention"
# Transformers 4's names of the kinds of layers.
_OLDER: Final = {"mamba": _MAMBA, "attention": FULL}


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    types = mixed_types(config, _MAMBA, older=_OLDER)
    mamba = mamba_layer(config)
    feed_forward = FeedForwardDescription(
        inner=projection("shared_mlp.input_linear"),
        outer=projection("shared_mlp.output_linear"),
        activation=str(config.hidden_act),
    )
    experts = granitemoe.experts_of(config, feed_forward) if config.num_local_experts else None
    is_rotated = config.position_embedding_type == "rope"

    def layer(index: int, own: LayerDescription) -> LayerDescription:
        own = replace(own, feed_forward=feed_forward, experts=experts, residual_scale=float(config.residual_multiplier))
        return replace(own, attention=None, recurrence=mamba) if types[index] == _MAMBA else own

    model = (
        llama.describe(config)
        .with_attention(
            lambda _, own: replace(
                own, scaling=float(config.attention_multiplier), rotary=own.rotary if is_rotated else None
            )
        )
        .with_layers(layer)
    )
    return replace(
        model,
        embedding_scale=float(config.embedding_multiplier),
        logit_scale=1.0 / float(config.logits_scaling),
    )


FAMILY = Family("granitemoehybrid", "GraniteMoeHybridForCausalLM", describe, renames=granitemoe.RENAMES)
