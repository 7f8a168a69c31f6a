"""Ministral 8B: Mistral with a window in some layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import with_windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    return with_windows(llama.describe(config), config)


FAMILY = Family("ministral", "MinistralForCausalLM", describe)
