"""LFM2 with experts (8B-A1B): LFM2 with experts behind some dense layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import RotaryDescription
from helix_jobs.engine.model.families import lfm2
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.sparse import experts, router, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription

_BLOCK = "feed_forward"


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    choice = router(
        config.num_experts,
        config.num_experts_per_tok,
        f"{_BLOCK}.gate.weight",
        score="sigmoid",
        correction=f"{_BLOCK}.expert_bias" if config.use_expert_bias else None,
        is_normalised=bool(config.norm_topk_prob),
        sum_offset=1e-6,
        scale=float(config.routed_scaling_factor),
        rounds_weights=True,
    )
    made = experts("silu", choice, _BLOCK)
    model = lfm2.describe(config, RotaryDescription(module="pos_emb"))
    return with_experts(model, lambda _: made, lambda index: index >= config.num_dense_layers)


FAMILY = Family("lfm2_moe", "Lfm2MoeForCausalLM", describe)
