"""Qwen3-Next (80B-A3B): the gated delta rule in most layers, gated attention in every fourth, experts in each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families.delta_layers import with_delta_layers
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.qwen2_moe import experts_of
from helix_jobs.engine.model.families.qwen3_moe import has_experts
from helix_jobs.engine.model.families.settings import projection
from helix_jobs.engine.model.families.sparse import with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    inner = projection("linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba")
    made = experts_of(config, is_normalised=bool(config.norm_topk_prob))
    return with_experts(
        with_delta_layers(config, inner, is_grouped=True), lambda _: made, lambda index: has_experts(config, index)
    )


FAMILY = Family("qwen3_next", "Qwen3NextForCausalLM", describe, draft_head="mtp.")
