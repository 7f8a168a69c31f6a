"""Hunyuan with experts (A13B): Hunyuan with experts and a shared expert in every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import hunyuan_v1_dense
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.sparse import every_layer, experts, router, shared_expert, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription
    from helix_jobs.engine.model.expert_description import ExpertsDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""

    def made(index: int) -> ExpertsDescription:
        top_k = config.moe_topk if isinstance(config.moe_topk, int) else config.moe_topk[index]
        choice = router(config.num_experts, top_k, "mlp.gate.wg.weight", is_exact=True)
        return experts(config.hidden_act, choice, shared=shared_expert(config.hidden_act, "mlp.shared_mlp"))

    return with_experts(hunyuan_v1_dense.describe(config), made, every_layer)


FAMILY = Family("hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", describe)
