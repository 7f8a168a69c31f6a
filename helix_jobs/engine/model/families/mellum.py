"""Mellum 2: Qwen 3 with experts, windows in some layers, and frequencies by kind of layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import RotaryDescription
from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_types, rms_norm, with_windows
from helix_jobs.engine.model.families.sparse import experts, has_experts_by_layer, router, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import AttentionDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm, types = rms_norm(config.rms_norm_eps), layer_types(config)

    def attending(index: int, own: AttentionDescription) -> AttentionDescription:
        return replace(
            own,
            query_norm=norm("self_attn.q_norm"),
            key_norm=norm("self_attn.k_norm"),
            rotary=RotaryDescription(layer_type=types[index]),
        )

    choice = router(
        config.num_experts,
        config.num_experts_per_tok,
        is_normalised=bool(config.norm_topk_prob),
        rounds_weights=True,
    )
    model = with_windows(llama.describe(config), config).with_attention(attending)
    return with_experts(model, lambda _: experts(config.hidden_act, choice), has_experts_by_layer(config))


FAMILY = Family("mellum", "MellumForCausalLM", describe, draft_head="mtp.", needs_transformers_5=True)
