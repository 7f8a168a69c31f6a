"""Phi-3.5-MoE: Llama with layer norms, and two experts a token, chosen by a sparse mixer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import RotaryDescription, UnsupportedSettingError
from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import check_setting, layer_norm, with_one_window
from helix_jobs.engine.model.families.sparse import every_layer, experts, router, with_experts
from helix_jobs.engine.model.rope_settings import LONG_ROPE, rope_type

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    check_setting(config, "num_experts_per_tok", 2)
    scaling = rope_type(config)
    if scaling not in {"default", LONG_ROPE}:
        raise UnsupportedSettingError(f"scales its positions with {scaling!r}; supported are default and {LONG_ROPE}")
    choice = router(
        config.num_local_experts,
        config.num_experts_per_tok,
        "mlp.router.weight",
        score="mixed",
        jitter=float(config.router_jitter_noise),
        rounds_weights=True,
    )
    model = with_one_window(llama.describe(config, layer_norm(config.rms_norm_eps)), config).with_attention(
        lambda _, own: replace(own, rotary=RotaryDescription(has_length_scales=True))
    )
    return with_experts(model, lambda _: experts(config.hidden_act, choice), every_layer)


FAMILY = Family(
    "phimoe",
    "PhimoeForCausalLM",
    describe,
    renames=((".block_sparse_moe.", ".mlp."), (".gate.weight", ".router.weight")),
    needs_transformers_5=True,
)
