"""StarCoder 2: layer norms, biases, an ungated feed-forward; a window, if there is one, is that of every layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_norm, plain_feed_forward, with_one_window

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    model = llama.describe(config, layer_norm(config.norm_epsilon)).with_layers(
        lambda _, layer: replace(layer, feed_forward=plain_feed_forward(config.hidden_act, "mlp.c_fc", "mlp.c_proj"))
    )
    return with_one_window(model, config)


FAMILY = Family("starcoder2", "Starcoder2ForCausalLM", describe)
