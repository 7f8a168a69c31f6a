"""BioGPT: OPT's layers, without a decoder around them, and a factor of the embedding."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import opt
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    return replace(
        opt.with_layers(config, str(config.hidden_act)),
        stack="layers",
        embedding="embed_tokens",
        embedding_scale=config.hidden_size**0.5 if config.scale_embedding else 1.0,
        positions="embed_positions",
        final_norm=layer_norm(1e-5)("layer_norm"),
    )


FAMILY = Family("biogpt", "BioGptForCausalLM", describe)
