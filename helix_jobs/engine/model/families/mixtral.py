"""Mixtral: Mistral with experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import with_one_window
from helix_jobs.engine.model.families.sparse import every_layer, experts, router, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    made = experts(config.hidden_act, router(config.num_local_experts, config.num_experts_per_tok))
    return with_experts(with_one_window(llama.describe(config), config), lambda _: made, every_layer)


FAMILY = Family("mixtral", "MixtralForCausalLM", describe, renames=((".block_sparse_moe.", ".mlp."),))
