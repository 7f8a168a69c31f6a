"""Kolibri 1: norms around each part, EXAONE 4's attention, and experts chosen by their logits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import glm4, llama
from helix_jobs.engine.model.families.exaone4 import rotating_windows
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import rms_norm
from helix_jobs.engine.model.families.sparse import every_layer, experts, router, shared_expert, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = rms_norm(config.rms_norm_eps)
    model = rotating_windows(glm4.with_norms_around(llama.describe(config), norm), config).with_attention(
        lambda _, own: replace(own, query_norm=norm("self_attn.q_norm"), key_norm=norm("self_attn.k_norm"))
    )
    choice = router(
        config.num_experts,
        config.num_experts_per_tok,
        score="sigmoid",
        chooses_by_logits=True,
        correction="mlp.gate.e_score_correction_bias",
        is_normalised=bool(config.norm_topk_prob),
        is_exact=True,
    )
    made = experts(config.hidden_act, choice, shared=shared_expert(config.hidden_act, "mlp.shared_experts"))
    return with_experts(model, lambda _: made, every_layer)


FAMILY = Family(
    "kolibri1",
    "Kolibri1ForCausalLM",
    describe,
    renames=(
        ("moe.router.expert_bias", "mlp.gate.e_score_correction_bias"),
        ("post_attn_norm", "post_self_attn_layernorm"),
        ("post_ffn_norm", "post_mlp_layernorm"),
    ),
    needs_transformers_5=True,
)
