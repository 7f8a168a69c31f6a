"""Qwen 3.5 and 3.6 with experts (35B-A3B): Qwen 3.5 with experts in every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import qwen3_5
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.qwen2_moe import experts_of
from helix_jobs.engine.model.families.sparse import every_layer, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    made = experts_of(config, is_normalised=True)
    return with_experts(qwen3_5.describe(config), lambda _: made, every_layer)


FAMILY = Family("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", describe, draft_head="mtp.")
