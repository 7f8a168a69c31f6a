"""DeepSeek-V3, R1 (arXiv:2412.19437) and Moonlight: latent attention, and experts behind the first layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.latent import check_setting, first_sparse_layer, with_latents
from helix_jobs.engine.model.families.sparse import deepseek_router, experts, shared_expert, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    check_setting(config, "scoring_func", "sigmoid")
    check_setting(config, "topk_method", "noaux_tc")
    first = first_sparse_layer(config)
    shared = shared_expert(config.hidden_act, "mlp.shared_experts")
    made = experts(config.hidden_act, deepseek_router(config), shared=shared)
    model = with_latents(llama.describe(config), config, is_interleaved=bool(config.rope_interleave))
    return with_experts(model, lambda _: made, lambda index: index >= first)


FAMILY = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    describe,
    further_layers="num_nextn_predict_layers",
    needs_transformers_5=True,
)
