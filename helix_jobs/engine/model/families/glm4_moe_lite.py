"""GLM-4.7-Flash: DeepSeek-V3's latent attention and experts; the configuration names the layers that have experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import UnsupportedSettingError
from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.latent import check_setting, with_latents
from helix_jobs.engine.model.families.sparse import deepseek_router, experts, shared_expert, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    check_setting(config, "scoring_func", "sigmoid")
    check_setting(config, "topk_method", "noaux_tc")
    kinds = config.mlp_layer_types
    if len(kinds) != config.num_hidden_layers or not {*kinds} <= {"dense", "sparse"}:
        raise UnsupportedSettingError("has mlp_layer_types that do not say of each layer whether it has experts")
    shared = shared_expert(config.hidden_act, "mlp.shared_experts")
    made = experts(config.hidden_act, deepseek_router(config), shared=shared)
    model = with_latents(llama.describe(config), config, is_interleaved=bool(config.rope_interleave))
    return with_experts(model, lambda _: made, lambda index: kinds[index] == "sparse")


FAMILY = Family(
    "glm4_moe_lite",
    "Glm4MoeLiteForCausalLM",
    describe,
    further_layers="num_nextn_predict_layers",
    needs_transformers_5=True,
)
