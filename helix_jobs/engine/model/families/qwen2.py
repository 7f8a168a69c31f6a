"""Qwen 2 and 2.5: Llama with biases; some layers may have a sliding window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_types, with_windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    model = llama.describe(config)
    if config.use_sliding_window:
        return with_windows(model, config)
    layer_types(config)  # raises for other types
    return model


FAMILY = Family("qwen2", "Qwen2ForCausalLM", describe)
