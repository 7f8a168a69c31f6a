"""Qwen 1.5 and 2 with experts: Qwen 2, with experts and a shared, gated expert in some layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.qwen3_moe import has_experts
from helix_jobs.engine.model.families.settings import projection, with_windows
from helix_jobs.engine.model.families.sparse import experts, router, shared_expert, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription
    from helix_jobs.engine.model.expert_description import ExpertsDescription


def experts_of(config: PretrainedConfig, *, is_normalised: bool) -> ExpertsDescription:
    """Experts with a shared expert whose factor is the sigmoid of a gate, as later Qwen models have them, too."""
    choice = router(config.num_experts, config.num_experts_per_tok, is_normalised=is_normalised, rounds_weights=True)
    return replace(
        experts(config.hidden_act, choice, shared=shared_expert(config.hidden_act, "mlp.shared_expert")),
        shared_gate=projection("mlp.shared_expert_gate"),
    )


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    made = experts_of(config, is_normalised=bool(config.norm_topk_prob))
    return with_experts(
        with_windows(llama.describe(config), config), lambda _: made, lambda index: has_experts(config, index)
    )


FAMILY = Family("qwen2_moe", "Qwen2MoeForCausalLM", describe)
