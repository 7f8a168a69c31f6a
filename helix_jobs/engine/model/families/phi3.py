"""Phi-3 and Phi-4: Llama with stacked projections; a sliding window, if there is one, is that of every layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import projection, with_one_window

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    model = llama.describe(config).with_feed_forward(lambda _, own: replace(own, inner=projection("mlp.gate_up_proj")))
    model = model.with_attention(lambda _, own: replace(own, qkv=projection("self_attn.qkv_proj")))
    return with_one_window(model, config)


FAMILY = Family("phi3", "Phi3ForCausalLM", describe)
