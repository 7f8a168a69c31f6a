"""DeepSeek-V2, V2-Lite and Coder-V2 (arXiv:2405.04434): latent attention, and experts behind the first layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.latent import latents_with_experts
from helix_jobs.engine.model.families.settings import check_setting
from helix_jobs.engine.model.families.sparse import first_sparse_layer, router

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription
    from helix_jobs.engine.model.expert_description import RouterDescription

_GREEDY: Final = "greedy"
_BY_GROUP: Final = "group_limited_greedy"


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    first = first_sparse_layer(config)
    return latents_with_experts(
        config, _router(config), lambda index: index >= first, is_interleaved=True, is_wide=True
    )


def _router(config: PretrainedConfig) -> RouterDescription:
    """Softmax; a group scores what its best expert scores. Weights are not divided by their sum."""
    check_setting(config, "scoring_func", "softmax")
    check_setting(config, "norm_topk_prob", False)  # noqa: FBT003  (the value that is served)
    check_setting(config, "topk_method", _GREEDY, _BY_GROUP, is_read=True)
    has_groups = config.topk_method == _BY_GROUP
    return router(
        config.n_routed_experts,
        config.num_experts_per_tok,
        num_groups=config.n_group if has_groups else 1,
        kept_groups=config.topk_group if has_groups else 1,
        scored_in_group=1,
        is_normalised=False,
        scale=float(config.routed_scaling_factor),
        is_exact=True,
    )


FAMILY = Family("deepseek_v2", "DeepseekV2ForCausalLM", describe, needs_transformers_5=True)
