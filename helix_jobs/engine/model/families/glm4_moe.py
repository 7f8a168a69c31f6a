"""GLM-4.5 and 4.6: Llama with partly rotated heads, and DeepSeek's experts after some dense layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import rms_norm
from helix_jobs.engine.model.families.sparse import deepseek_router, experts, shared_expert, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = rms_norm(config.rms_norm_eps)
    model = llama.describe(config)
    if config.use_qk_norm:
        model = model.with_attention(
            lambda _, own: replace(own, query_norm=norm("self_attn.q_norm"), key_norm=norm("self_attn.k_norm"))
        )
    shared = shared_expert(config.hidden_act, "mlp.shared_experts")
    made = experts(config.hidden_act, deepseek_router(config), shared=shared)
    return with_experts(model, lambda _: made, lambda index: index >= config.first_k_dense_replace)


FAMILY = Family("glm4_moe", "Glm4MoeForCausalLM", describe, further_layers="num_nextn_predict_layers")
