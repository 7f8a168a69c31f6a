"""Solar Open: Llama with experts like those of GLM-4.5 in every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.sparse import deepseek_router, every_layer, experts, shared_expert, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    shared = shared_expert(config.hidden_act, "mlp.shared_experts")
    made = experts(config.hidden_act, deepseek_router(config), shared=shared)
    return with_experts(llama.describe(config), lambda _: made, every_layer)


FAMILY = Family("solar_open", "SolarOpenForCausalLM", describe, needs_transformers_5=True)
