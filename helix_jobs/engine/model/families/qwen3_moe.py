"""Qwen 3 with experts (30B-A3B, 235B-A22B, Coder): Qwen 3 whose feed-forwards are experts in some layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import rms_norm, with_one_window
from helix_jobs.engine.model.families.sparse import experts, router, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def has_experts(config: PretrainedConfig, index: int) -> bool:
    """Whether this layer of a Qwen model has experts."""
    return (
        index not in config.mlp_only_layers and config.num_experts > 0 and (index + 1) % config.decoder_sparse_step == 0
    )


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = rms_norm(config.rms_norm_eps)
    model = with_one_window(llama.describe(config), config).with_attention(
        lambda _, own: replace(own, query_norm=norm("self_attn.q_norm"), key_norm=norm("self_attn.k_norm"))
    )
    choice = router(
        config.num_experts,
        config.num_experts_per_tok,
        is_normalised=bool(config.norm_topk_prob),
        rounds_weights=True,
    )
    return with_experts(model, lambda _: experts(config.hidden_act, choice), lambda index: has_experts(config, index))


FAMILY = Family("qwen3_moe", "Qwen3MoeForCausalLM", describe)
