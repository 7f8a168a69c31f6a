"""OLMoE: Llama with experts, and norms of queries and keys over all heads together, clipped after them."""

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
            own,
            query_norm=norm("self_attn.q_norm"),
            key_norm=norm("self_attn.k_norm"),
            norm_scope="row",
            clip=None if config.clip_qkv is None else float(config.clip_qkv),
        )
    )
    choice = router(
        config.num_experts,
        config.num_experts_per_tok,
        is_normalised=bool(config.norm_topk_prob),
        rounds_weights=True,
    )
    return with_experts(model, lambda _: experts(config.hidden_act, choice), every_layer)


FAMILY = Family("olmoe", "OlmoeForCausalLM", describe)
