"""Command R7B and A (Cohere 2): Cohere with a window in some layers; the others rotate nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import cohere
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import SLIDING, layer_types, with_windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    types = layer_types(config)
    return with_windows(cohere.describe_plain(config), config).with_attention(
        lambda index, own: own if types[index] == SLIDING else replace(own, rotary=None)
    )


FAMILY = Family("cohere2", "Cohere2ForCausalLM", describe)
