"""GPT-J: attention and feed-forward side by side after one layer norm, heads rotated in part, a bias of the head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import (
    AttentionDescription,
    FeedForwardDescription,
    LayerDescription,
    ModelDescription,
    RotaryDescription,
    UnsupportedSettingError,
)
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_norm, projection

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = layer_norm(config.layer_norm_epsilon)
    head_dim = config.hidden_size // config.num_attention_heads
    if config.rotary_dim % 2 or not 0 < config.rotary_dim <= head_dim:
        raise UnsupportedSettingError(f"has rotary_dim {config.rotary_dim}, which must be even and at most {head_dim}")
    layer = LayerDescription(
        attention_norm=norm("ln_1"),
        attention=AttentionDescription(
            qkv=projection("attn.q_proj", "attn.k_proj", "attn.v_proj"),
            out=projection("attn.out_proj"),
            scaling=head_dim**-0.5,
            rotary=RotaryDescription(theta=10000.0, rotary_dim=config.rotary_dim, is_interleaved=True),
        ),
        feed_forward_norm=None,
        feed_forward=FeedForwardDescription(
            inner=projection("mlp.fc_in"),
            outer=projection("mlp.fc_out"),
            activation=str(config.activation_function),
            is_gated=False,
        ),
        is_parallel=True,
    )
    return ModelDescription(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads,
        head_dim=head_dim,
        stack="h",
        layers=(layer,) * config.num_hidden_layers,
        embedding="wte",
        final_norm=norm("ln_f"),
    )


FAMILY = Family("gptj", "GPTJForCausalLM", describe)
