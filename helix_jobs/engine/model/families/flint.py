"""Flint: Qwen 3 with sinks, experts chosen by sigmoids, and rotation in the layers with a window alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.exaone4 import rotating_windows
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.qwen3_moe import has_experts
from helix_jobs.engine.model.families.settings import rms_norm
from helix_jobs.engine.model.families.sparse import experts, router, shared_expert, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = rms_norm(config.rms_norm_eps)
    model = rotating_windows(llama.describe(config), config).with_attention(
        lambda _, own: replace(
            own, query_norm=norm("self_attn.q_norm"), key_norm=norm("self_attn.k_norm"), sinks="self_attn.sinks"
        )
    )
    choice = router(
        config.num_experts,
        config.num_experts_per_tok,
        score="sigmoid",
        is_normalised=bool(config.norm_topk_prob),
        is_exact=True,
    )
    made = experts(config.hidden_act, choice, shared=shared_expert(config.hidden_act, "mlp.shared_expert"))
    return with_experts(model, lambda _: made, lambda index: has_experts(config, index))


FAMILY = Family(
    "flint",
    "FlintForCausalLM",
    describe,
    renames=(("self_attn.softmax_offset", "self_attn.sinks"),),
    needs_transformers_5=True,
)
