"""Qwen 3.5 and 3.6, dense: the gated delta rule in most layers, gated attention in every fourth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families.delta_layers import with_delta_layers
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import projection

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    parts = ("in_proj_qkv", "in_proj_b", "in_proj_a", "in_proj_z")
    inner = projection(*(f"linear_attn.{part}" for part in parts))
    return with_delta_layers(config, inner, is_grouped=False)


FAMILY = Family("qwen3_5_text", "Qwen3_5ForCausalLM", describe, draft_head="mtp.")
