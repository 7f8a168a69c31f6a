"""Llama: RMS norms before each part, rotary positions, a gated feed-forward.

Many families are described by their differences from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import (
    AttentionDescription,
    FeedForwardDescription,
    LayerDescription,
    ModelDescription,
)
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import head_dim, num_kv_heads, projection, rms_norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.families.settings import NormByName


def describe(
    config: PretrainedConfig, norm: NormByName | None = None, activation: str | None = None
) -> ModelDescription:
    """Llama's description.

    Args:
        config: Of Llama, or of a family that names these settings alike.
        norm: Another kind of norm, by the name of its module.
        activation: The activation, of a family that does not name it ``hidden_act``.
    """
    norm = norm or rms_norm(config.rms_norm_eps)
    layer = LayerDescription(
        attention_norm=norm("input_layernorm"),
        attention=AttentionDescription(
            qkv=projection("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            out=projection("self_attn.o_proj"),
            scaling=head_dim(config) ** -0.5,
        ),
        feed_forward_norm=norm("post_attention_layernorm"),
        feed_forward=FeedForwardDescription(
            inner=projection("mlp.gate_proj", "mlp.up_proj"),
            outer=projection("mlp.down_proj"),
            activation=activation or str(config.hidden_act),
        ),
    )
    return ModelDescription(
        num_heads=config.num_attention_heads,
        num_kv_heads=num_kv_heads(config),
        head_dim=head_dim(config),
        layers=(layer,) * config.num_hidden_layers,
        final_norm=norm("norm"),
    )


FAMILY = Family("llama", "LlamaForCausalLM", describe)
