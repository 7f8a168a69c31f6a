"""VaultGemma: Gemma 2 without norms after its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import gemma2
from helix_jobs.engine.model.families.family import Family

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    return gemma2.describe(config).with_layers(
        lambda _, layer: replace(layer, attention_out_norm=None, feed_forward_out_norm=None)
    )


FAMILY = Family("vaultgemma", "VaultGemmaForCausalLM", describe)
