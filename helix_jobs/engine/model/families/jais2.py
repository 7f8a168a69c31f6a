"""Jais 2: layer norms, biases, an ungated feed-forward."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_norm, plain_feed_forward

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    return llama.describe(config, layer_norm(config.layer_norm_eps)).with_layers(
        lambda _, layer: replace(layer, feed_forward=plain_feed_forward(config.hidden_act))
    )


FAMILY = Family("jais2", "Jais2ForCausalLM", describe)
