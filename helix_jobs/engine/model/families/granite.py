"""Granite 3 (dense): Llama with factors of embeddings, scores, residuals and logits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import LayerDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""

    def changed(_: int, layer: LayerDescription) -> LayerDescription:
        return replace(layer, residual_scale=float(config.residual_multiplier))

    model = llama.describe(config).with_layers(changed)
    return replace(
        model.with_attention(lambda _, own: replace(own, scaling=float(config.attention_multiplier))),
        embedding_scale=float(config.embedding_multiplier),
        logit_scale=1 / config.logits_scaling,
    )


FAMILY = Family("granite", "GraniteForCausalLM", describe)
