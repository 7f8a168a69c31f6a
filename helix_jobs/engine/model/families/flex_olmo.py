"""FlexOLMo: OLMo 2 whose feed-forwards are experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import olmo2
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.sparse import every_layer, experts, router, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    choice = router(
        config.num_experts,
        config.num_experts_per_tok,
        is_normalised=bool(config.norm_topk_prob),
        rounds_weights=True,
    )
    return with_experts(olmo2.describe(config), lambda _: experts(config.hidden_act, choice), every_layer)


FAMILY = Family("flex_olmo", "FlexOlmoForCausalLM", describe, needs_transformers_5=True)
