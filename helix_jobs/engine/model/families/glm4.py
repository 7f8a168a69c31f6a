"""GLM-4-0414 and GLM-Z1: GLM with norms before and after each part."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import glm
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import rms_norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription
    from helix_jobs.engine.model.families.settings import NormByName


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    return with_norms_around(glm.describe(config), rms_norm(config.rms_norm_eps))


def with_norms_around(model: ModelDescription, norm: NormByName) -> ModelDescription:
    """The model with norms after each part as well."""
    return model.with_layers(
        lambda _, layer: replace(
            layer,
            attention_out_norm=norm("post_self_attn_layernorm"),
            feed_forward_out_norm=norm("post_mlp_layernorm"),
        )
    )


FAMILY = Family("glm4", "Glm4ForCausalLM", describe)
