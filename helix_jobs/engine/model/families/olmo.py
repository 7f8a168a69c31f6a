"""OLMo (the first generation): layer norms without weights; queries, keys and values may be clipped."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import without_weight

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    return llama.describe(config, without_weight("layer", 1e-5)).with_attention(
        lambda _, own: replace(own, clip=config.clip_qkv)
    )


FAMILY = Family("olmo", "OlmoForCausalLM", describe)
