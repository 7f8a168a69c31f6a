"""MiniMax M2: Llama with experts, partly rotated heads, and norms of queries and keys over all heads together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import rms_norm
from helix_jobs.engine.model.families.sparse import every_layer, experts, router, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = rms_norm(config.rms_norm_eps)
    model = llama.describe(config).with_attention(
        lambda _, own: replace(
            own, query_norm=norm("self_attn.q_norm"), key_norm=norm("self_attn.k_norm"), norm_scope="row"
        )
    )
    choice = router(
        config.num_local_experts,
        config.num_experts_per_tok,
        score="sigmoid",
        correction="mlp.e_score_correction_bias",
    )
    return with_experts(model, lambda _: experts(config.hidden_act, choice), every_layer)


FAMILY = Family("minimax_m2", "MiniMaxM2ForCausalLM", describe, renames=((".block_sparse_moe.", ".mlp."),))
