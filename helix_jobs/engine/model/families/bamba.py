"""Bamba: Mamba-2 in most layers, and attention with partly rotated heads in a few."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import FeedForwardDescription, UnsupportedSettingError
from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.mamba_layers import mamba_layer
from helix_jobs.engine.model.families.settings import FULL, projection, rms_norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import LayerDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    types, mamba, norm = tuple(config.layers_block_type), mamba_layer(config), rms_norm(config.rms_norm_eps)
    if FULL not in types:
        raise UnsupportedSettingError("has no layer with attention (attn_layer_indices)")

    def layer(index: int, own: LayerDescription) -> LayerDescription:
        own = replace(own, feed_forward_norm=norm("pre_ff_layernorm"), feed_forward=feed_forward(config))
        return own if types[index] == FULL else replace(own, attention=None, recurrence=mamba)

    return replace(llama.describe(config).with_layers(layer), final_norm=norm("final_layernorm"))


def feed_forward(config: PretrainedConfig) -> FeedForwardDescription:
    """Llama's feed-forward in the module ``feed_forward``."""
    return FeedForwardDescription(
        inner=projection("feed_forward.gate_proj", "feed_forward.up_proj"),
        outer=projection("feed_forward.down_proj"),
        activation=str(config.hidden_act),
    )


FAMILY = Family("bamba", "BambaForCausalLM", describe, needs_transformers_5=True)
