"""HyperCLOVA X: Granite with norms before and after each part, whose logits are multiplied, not divided."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import granite
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import rms_norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = rms_norm(config.rms_norm_eps)
    model = replace(granite.describe(config), logit_scale=float(config.logits_scaling))
    if not config.use_post_norm:
        return model
    return model.with_layers(
        lambda _, layer: replace(layer, attention_out_norm=norm("post_norm1"), feed_forward_out_norm=norm("post_norm2"))
    )


FAMILY = Family("hyperclovax", "HyperCLOVAXForCausalLM", describe)
