"""LFM3: LFM2 with norms around each part, windows in some layers, and a gate for each head of attention."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import RotaryDescription
from helix_jobs.engine.model.families import lfm2
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import SLIDING, mixed_types, projection, rms_norm, with_windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import AttentionDescription, LayerDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm, types = rms_norm(config.norm_eps), mixed_types(config, SLIDING, lfm2.CONV)
    has_gate = bool(config.use_attention_gate)

    def attending(index: int, own: AttentionDescription) -> AttentionDescription:
        return replace(
            own,
            qkv=projection(*(f"self_attn.{name}_proj" for name in ("q", "k", "v", *("g",) * has_gate))),
            out=projection("self_attn.o_proj"),
            query_norm=norm("self_attn.q_norm"),
            key_norm=norm("self_attn.k_norm"),
            rotary=RotaryDescription(layer_type=types[index]),
            has_gate=has_gate,
            is_gate_apart=has_gate,
            gates_heads=has_gate,
        )

    def around(_: int, layer: LayerDescription) -> LayerDescription:
        return replace(
            layer, attention_out_norm=norm("post_operator_norm"), feed_forward_out_norm=norm("post_ffn_norm")
        )

    model = lfm2.describe(config, windowed=SLIDING).with_attention(attending)
    model = model.with_layers(around) if config.use_sandwich_norm else model
    return with_windows(model, config, types)


FAMILY = Family(
    "lfm3",
    "Lfm3ForCausalLM",
    describe,
    renames=((".self_attn.gate_proj.", ".self_attn.g_proj."),),
    needs_transformers_5=True,
)
