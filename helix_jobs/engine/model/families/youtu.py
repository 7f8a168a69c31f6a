"""Youtu-LLM: Llama with DeepSeek-V3's latent attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.latent import with_latents

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    return with_latents(llama.describe(config), config, is_interleaved=bool(config.rope_interleave))


FAMILY = Family("youtu", "YoutuForCausalLM", describe, needs_transformers_5=True)
