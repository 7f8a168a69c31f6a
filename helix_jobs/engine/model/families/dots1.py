"""dots.llm1: Qwen 3 with DeepSeek's experts after some dense layers; some layers may have a sliding window."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import rms_norm, with_windows
from helix_jobs.engine.model.families.sparse import deepseek_router, experts, shared_expert, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = rms_norm(config.rms_norm_eps)
    model = with_windows(llama.describe(config), config).with_attention(
        lambda _, own: replace(own, query_norm=norm("self_attn.q_norm"), key_norm=norm("self_attn.k_norm"))
    )
    shared = shared_expert(config.hidden_act, "mlp.shared_experts")
    made = experts(config.hidden_act, deepseek_router(config), shared=shared)
    return with_experts(model, lambda _: made, lambda index: index >= config.first_k_dense_replace)


FAMILY = Family("dots1", "Dots1ForCausalLM", describe)
