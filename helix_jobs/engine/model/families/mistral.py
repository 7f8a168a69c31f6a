"""Mistral: Llama; a sliding window, if there is one, is that of every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import with_one_window

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    return with_one_window(llama.describe(config), config)


FAMILY = Family("mistral", "MistralForCausalLM", describe)
