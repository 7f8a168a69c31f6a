"""Mixtral: Mistral with experts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.sparse import every_layer, experts, router, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    made = experts(config.hidden_act, router(config.num_local_experts, config.num_experts_per_tok))
    model = llama.describe(config).with_attention(lambda _, own: replace(own, window=config.sliding_window))
    return with_experts(model, lambda _: made, every_layer)


FAMILY = Family("mixtral", "MixtralForCausalLM", describe, renames=((".block_sparse_moe.", ".mlp."),))
