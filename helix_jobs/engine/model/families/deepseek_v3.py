"""DeepSeek-V3, R1 (arXiv:2412.19437) and Moonlight: latent attention, and experts behind the first layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.latent import latents_with_experts
from helix_jobs.engine.model.families.settings import check_setting
from helix_jobs.engine.model.families.sparse import deepseek_router, first_sparse_layer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    check_setting(config, "scoring_func", "sigmoid")
    check_setting(config, "topk_method", "noaux_tc")
    first = first_sparse_layer(config)
    return latents_with_experts(
        config, deepseek_router(config), lambda index: index >= first, is_interleaved=bool(config.rope_interleave)
    )


FAMILY = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    describe,
    further_layers="num_nextn_predict_layers",
    needs_transformers_5=True,
)
