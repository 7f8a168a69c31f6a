"""GLM-4-9B and GLM-Edge: Llama with stacked projections, whose heads are rotated in part, in pairs side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import RotaryDescription
from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import projection

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    model = llama.describe(config).with_feed_forward(lambda _, own: replace(own, inner=projection("mlp.gate_up_proj")))
    return model.with_attention(lambda _, own: replace(own, rotary=RotaryDescription(is_interleaved=True)))


FAMILY = Family("glm", "GlmForCausalLM", describe)
