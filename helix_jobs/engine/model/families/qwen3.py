"""Qwen 3: Qwen 2 with norms of queries and keys."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import qwen2
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import rms_norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = rms_norm(config.rms_norm_eps)
    return qwen2.describe(config).with_attention(
        lambda _, own: replace(own, query_norm=norm("self_attn.q_norm"), key_norm=norm("self_attn.k_norm"))
    )


FAMILY = Family("qwen3", "Qwen3ForCausalLM", describe)
