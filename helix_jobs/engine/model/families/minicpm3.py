"""MiniCPM 3: latent attention, and factors of embeddings, residuals and logits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.latent import with_latents

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import LayerDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    residual_scale = float(config.scale_depth / math.sqrt(config.num_hidden_layers))

    def changed(_: int, layer: LayerDescription) -> LayerDescription:
        return replace(layer, residual_scale=residual_scale)

    model = with_latents(llama.describe(config), config, is_interleaved=False)
    return replace(
        model.with_layers(changed),
        embedding_scale=float(config.scale_emb),
        rounds_embedding_scale=True,
        logit_scale=config.dim_model_base / config.hidden_size,
    )


FAMILY = Family("minicpm3", "MiniCPM3ForCausalLM", describe, needs_transformers_5=True)
