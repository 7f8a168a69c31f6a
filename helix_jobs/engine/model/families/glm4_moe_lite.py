"""GLM-4.7-Flash: DeepSeek-V3's latent attention and experts; the configuration names the layers that have experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.latent import latents_with_experts
from helix_jobs.engine.model.families.settings import check_setting
from helix_jobs.engine.model.families.sparse import deepseek_router, has_experts_by_layer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    check_setting(config, "scoring_func", "sigmoid")
    check_setting(config, "topk_method", "noaux_tc")
    is_sparse = has_experts_by_layer(config)
    return latents_with_experts(
        config,
        deepseek_router(config),
        is_sparse,
        is_interleaved=bool(config.rope_interleave),
    )


FAMILY = Family(
    "glm4_moe_lite",
    "Glm4MoeLiteForCausalLM",
    describe,
    further_layers="num_nextn_predict_layers",
    needs_transformers_5=True,
)
