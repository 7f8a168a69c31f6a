"""Gemma 3: Gemma 2 with norms of queries and keys, no bound of scores, and frequencies by the kind of layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import RotaryDescription
from helix_jobs.engine.model.families import gemma2
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_types, rms_norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm, types = rms_norm(config.rms_norm_eps, offset=1.0), layer_types(config)
    return gemma2.describe(config).with_attention(
        lambda index, own: replace(
            own,
            query_norm=norm("self_attn.q_norm"),
            key_norm=norm("self_attn.k_norm"),
            rotary=RotaryDescription(layer_type=types[index]),
            score_cap=None,
        )
    )


FAMILY = Family("gemma3_text", "Gemma3ForCausalLM", describe, needs_transformers_5=True)
