"""K-EXAONE: EXAONE 4 with norms before each part, and experts after some dense layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.exaone4 import rotating_windows
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import rms_norm
from helix_jobs.engine.model.families.sparse import experts, has_experts_by_layer, router, shared_expert, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm, is_sparse = rms_norm(config.rms_norm_eps), has_experts_by_layer(config)
    model = rotating_windows(llama.describe(config), config).with_attention(
        lambda _, own: replace(own, query_norm=norm("self_attn.q_norm"), key_norm=norm("self_attn.k_norm"))
    )
    choice = router(
        config.num_experts,
        config.num_experts_per_tok,
        score="sigmoid",
        correction="mlp.gate.e_score_correction_bias",
        num_groups=config.n_group,
        kept_groups=config.topk_group,
        is_normalised=bool(config.norm_topk_prob),
        sum_offset=1e-20,
        scale=float(config.routed_scaling_factor),
        is_exact=True,
    )
    made = experts(config.hidden_act, choice, shared=shared_expert(config.hidden_act, "mlp.shared_experts"))
    return with_experts(model, lambda _: made, is_sparse)


FAMILY = Family(
    "exaone_moe",
    "ExaoneMoeForCausalLM",
    describe,
    renames=(("mlp.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),),
    draft_head="mtp.",
    needs_transformers_5=True,
)
