"""DeepSeek-V2, V2-Lite and Coder-V2 (arXiv:2405.04434): latent attention, and experts behind the first layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.latent import check_setting, first_sparse_layer, with_latents
from helix_jobs.engine.model.families.sparse import experts, router, shared_expert, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription
    from helix_jobs.engine.model.expert_description import RouterDescription

_GREEDY: Final = "greedy"
_BY_GROUP: Final = "group_limited_greedy"


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    first = first_sparse_layer(config)
    made = experts(config.hidden_act, _router(config), shared=shared_expert(config.hidden_act, "mlp.shared_experts"))
    model = with_latents(llama.describe(config), config, is_interleaved=True)
    return with_experts(model, lambda _: made, lambda index: index >= first)


def _router(config: PretrainedConfig) -> RouterDescription:
    """Softmax; a group scores what its best expert scores. Weights are not divided by their sum."""
    check_setting(config, "scoring_func", "softmax")
    check_setting(config, "norm_topk_prob", False)  # noqa: FBT003  (the value that is served)
    check_setting(config, "topk_method", _GREEDY, _BY_GROUP)
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
