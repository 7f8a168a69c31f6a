"""Hunyuan 3: Qwen 3 with experts after the first layer, chosen by sigmoids."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import rms_norm
from helix_jobs.engine.model.families.sparse import experts, has_experts_by_layer, router, shared_expert, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = rms_norm(config.rms_norm_eps)
    model = llama.describe(config).with_attention(
        lambda _, own: replace(own, query_norm=norm("self_attn.q_norm"), key_norm=norm("self_attn.k_norm"))
    )
    choice = router(
        config.num_experts,
        config.num_experts_per_tok,
        score="sigmoid",
        correction="mlp.e_score_correction_bias",
        sum_offset=1e-20,
        scale=float(config.router_scaling_factor),
        is_exact=True,
    )
    made = experts(config.hidden_act, choice, shared=shared_expert(config.hidden_act, "mlp.shared_experts"))
    return with_experts(model, lambda _: made, has_experts_by_layer(config))


def _is_unread(config: PretrainedConfig, tensor: str) -> bool:
    """The layer behind the last one drafts further tokens."""
    return tensor.startswith(f"layers.{config.num_hidden_layers}.")


FAMILY = Family(
    "hy_v3",
    "HYV3ForCausalLM",
    describe,
    renames=(
        ("mlp.router.gate.", "mlp.gate."),
        ("mlp.expert_bias", "mlp.e_score_correction_bias"),
        ("mlp.shared_mlp.", "mlp.shared_experts."),
    ),
    needs_transformers_5=True,
    is_unread=_is_unread,
)
