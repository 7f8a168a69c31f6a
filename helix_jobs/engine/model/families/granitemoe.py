"""Granite 3 with experts (1B-A400M, 3B-A800M): Granite with experts in every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import granite
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.sparse import every_layer, experts, router, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import FeedForwardDescription, ModelDescription
    from helix_jobs.engine.model.expert_description import ExpertsDescription

_BLOCK = "block_sparse_moe"
# The names in checkpoints, and those of transformers 5's modules.
RENAMES = (
    (f".{_BLOCK}.input_linear.weight", f".{_BLOCK}.experts.gate_up_proj"),
    (f".{_BLOCK}.output_linear.weight", f".{_BLOCK}.experts.down_proj"),
    (f".{_BLOCK}.router.layer.", f".{_BLOCK}.router."),
)


def experts_of(config: PretrainedConfig, shared: FeedForwardDescription | None) -> ExpertsDescription:
    """Granite's experts, beside a shared expert if there is one."""
    choice = router(
        config.num_local_experts,
        config.num_experts_per_tok,
        f"{_BLOCK}.router.weight",
        score="selected",
        rounds_weights=True,
    )
    return experts(config.hidden_act, choice, _BLOCK, shared)


def describe(config: PretrainedConfig, shared: FeedForwardDescription | None = None) -> ModelDescription:
    """The model's description; ``shared`` is a shared expert."""
    made = experts_of(config, shared)
    return with_experts(granite.describe(config), lambda _: made, every_layer)


FAMILY = Family("granitemoe", "GraniteMoeForCausalLM", describe, renames=RENAMES)
