"""ERNIE 4.5 with experts (21B-A3B, 300B-A47B): ERNIE 4.5 with experts in some layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import ernie4_5
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.sparse import experts, router, shared_expert, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    choice = router(
        config.moe_num_experts,
        config.moe_k,
        correction="mlp.gate.moe_statics.e_score_correction_bias",
        least_sum=float(config.moe_norm_min),
        is_exact=True,
        rounds_weights=True,
    )
    has_shared = config.moe_num_shared_experts > 0
    shared = shared_expert(config.hidden_act, "mlp.shared_experts") if has_shared else None
    made = experts(config.hidden_act, choice, shared=shared)

    def is_sparse(index: int) -> bool:
        is_within: bool = config.moe_layer_start_index <= index <= config.moe_layer_end_index
        return is_within and (index + 1) % int(config.moe_layer_interval) == 0

    return with_experts(ernie4_5.describe(config), lambda _: made, is_sparse)


FAMILY = Family(
    "ernie4_5_moe",
    "Ernie4_5_MoeForCausalLM",
    describe,
    renames=((".mlp.moe_statics.", ".mlp.gate.moe_statics."),),
    draft_head="mtp_",
)
