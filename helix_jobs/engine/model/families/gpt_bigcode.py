"""GPT-BigCode (StarCoder, SantaCoder): GPT-2 with weights as linear layers have them; queries may share one key."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import gpt2
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import projection

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import AttentionDescription, FeedForwardDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    has_one_key = bool(config.multi_query)

    def feeding(_: int, own: FeedForwardDescription) -> FeedForwardDescription:
        return replace(own, inner=projection("mlp.c_fc"), outer=projection("mlp.c_proj"))

    def attending(_: int, own: AttentionDescription) -> AttentionDescription:
        return replace(own, qkv=projection("attn.c_attn"), out=projection("attn.c_proj"), is_grouped=not has_one_key)

    model = gpt2.describe(config).with_feed_forward(feeding).with_attention(attending)
    return replace(model, num_kv_heads=1) if has_one_key else model


FAMILY = Family("gpt_bigcode", "GPTBigCodeForCausalLM", describe)
