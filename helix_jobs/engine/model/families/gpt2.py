"""GPT-2: layer norms, learned positions, transposed weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import (
    AttentionDescription,
    FeedForwardDescription,
    LayerDescription,
    ModelDescription,
)
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_norm, transposed

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = layer_norm(config.layer_norm_epsilon)
    head_dim = config.hidden_size // config.num_attention_heads
    scaling = head_dim**-0.5 if config.scale_attn_weights else 1.0

    # GPT-BigCode, which is described by its differences, has no such setting.
    is_by_layer = getattr(config, "scale_attn_by_inverse_layer_idx", False)

    def layer(index: int) -> LayerDescription:
        return LayerDescription(
            attention_norm=norm("ln_1"),
            attention=AttentionDescription(
                qkv=transposed("attn.c_attn"),
                out=transposed("attn.c_proj"),
                scaling=scaling / (index + 1) if is_by_layer else scaling,
                rotary=None,
            ),
            feed_forward_norm=norm("ln_2"),
            feed_forward=FeedForwardDescription(
                inner=transposed("mlp.c_fc"),
                outer=transposed("mlp.c_proj"),
                activation=str(config.activation_function),
                is_gated=False,
            ),
        )

    return ModelDescription(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads,
        head_dim=head_dim,
        stack="h",
        layers=tuple(layer(index) for index in range(config.num_hidden_layers)),
        embedding="wte",
        positions="wpe",
        final_norm=norm("ln_f"),
    )


FAMILY = Family("gpt2", "GPT2LMHeadModel", describe, is_transposed=True)
