"""OLMo 3: OLMo 2 with a window in some layers, and frequencies by the kind of layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import RotaryDescription
from helix_jobs.engine.model.families import olmo2
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_types, with_windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    types = layer_types(config)
    return with_windows(olmo2.describe(config), config).with_attention(
        lambda index, own: replace(own, rotary=RotaryDescription(layer_type=types[index]))
    )


FAMILY = Family("olmo3", "Olmo3ForCausalLM", describe, needs_transformers_5=True)
