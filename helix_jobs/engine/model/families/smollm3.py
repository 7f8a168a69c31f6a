"""SmolLM 3: Llama with layers that rotate nothing; some layers may have a window."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import with_windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    return with_windows(llama.describe(config), config).with_attention(
        lambda index, own: own if config.no_rope_layers[index] else replace(own, rotary=None)
    )


FAMILY = Family("smollm3", "SmolLM3ForCausalLM", describe)
