"""Helium: Llama whose rotated pairs stand side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import RotaryDescription
from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    return llama.describe(config).with_attention(
        lambda _, own: replace(own, rotary=RotaryDescription(is_interleaved=True))
    )


FAMILY = Family("helium", "HeliumForCausalLM", describe)
