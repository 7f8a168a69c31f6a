"""Granite 3 with experts and a shared expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import FeedForwardDescription
from helix_jobs.engine.model.families import granitemoe
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import projection

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    if config.shared_intermediate_size == 0:
        return granitemoe.describe(config)
    shared = FeedForwardDescription(
        inner=projection("shared_mlp.input_linear"),
        outer=projection("shared_mlp.output_linear"),
        activation=str(config.hidden_act),
    )
    return granitemoe.describe(config, shared)


FAMILY = Family("granitemoeshared", "GraniteMoeSharedForCausalLM", describe, renames=granitemoe.RENAMES)
