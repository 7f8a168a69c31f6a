"""Hunyuan (dense): Llama with norms of queries and keys after their rotation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import rms_norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = rms_norm(config.rms_norm_eps)
    return llama.describe(config).with_attention(
        lambda _, own: replace(
            own,
            query_norm=norm("self_attn.query_layernorm"),
            key_norm=norm("self_attn.key_layernorm"),
            norm_scope="rotated",
        )
    )


FAMILY = Family("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", describe)
