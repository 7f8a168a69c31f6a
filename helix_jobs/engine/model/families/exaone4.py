"""EXAONE 4: norms after each part alone, norms of heads, a window in some layers; the others then rotate nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import olmo2
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import SLIDING, layer_types, with_windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import AttentionDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    model = olmo2.describe(config).with_attention(lambda _, own: replace(own, norm_scope="head"))
    return rotating_windows(model, config)


def rotating_windows(model: ModelDescription, config: PretrainedConfig) -> ModelDescription:
    """The model with a window in some layers; the others then rotate nothing."""
    types = layer_types(config)

    def changed(index: int, own: AttentionDescription) -> AttentionDescription:
        is_rotated = config.sliding_window is None or types[index] == SLIDING
        return replace(own, rotary=own.rotary if is_rotated else None)

    return with_windows(model, config).with_attention(changed)


FAMILY = Family("exaone4", "Exaone4ForCausalLM", describe)
