"""GPT-OSS: Llama with experts of a bounded SwiGLU, attention sinks, and a sliding window on every other layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import with_windows
from helix_jobs.engine.model.families.sparse import every_layer, experts, router, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    model = with_windows(llama.describe(config), config).with_attention(
        lambda _, own: replace(own, sinks="self_attn.sinks")
    )
    choice = router(
        config.num_local_experts,
        config.num_experts_per_tok,
        "mlp.router.weight",
        score="selected",
        bias="mlp.router.bias",
        rounds_weights=True,
    )
    made = replace(
        experts(config.hidden_act, choice),
        # The first releases of transformers that have GPT-OSS have these numbers in its modules alone.
        clamp=(float(getattr(config, "swiglu_alpha", 1.702)), float(getattr(config, "swiglu_limit", 7.0))),
        has_bias=True,
        is_transposed=True,
        is_interleaved=True,
    )
    return with_experts(model, lambda _: made, every_layer)


FAMILY = Family("gpt_oss", "GptOssForCausalLM", describe, stores_mxfp4=True)
