"""Ministral 3 and Devstral 2: Mistral whose queries grow with their position."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import UnsupportedSettingError
from helix_jobs.engine.model.families import mistral
from helix_jobs.engine.model.families.family import Family

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    rope = config.rope_parameters
    beta, original = rope.get("llama_4_scaling_beta"), rope.get("original_max_position_embeddings")
    if beta is None or not original:
        raise UnsupportedSettingError(
            "lacks llama_4_scaling_beta or original_max_position_embeddings in its rope_parameters"
        )
    return mistral.describe(config).with_attention(
        lambda _, own: replace(own, query_growth=(float(beta), int(original)))
    )


FAMILY = Family("ministral3", "Ministral3ForCausalLM", describe)
