"""OPT: layer norms before each part, learned positions that begin at their third row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import (
    AttentionDescription,
    FeedForwardDescription,
    LayerDescription,
    ModelDescription,
)
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import check_setting, layer_norm, projection

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    # OPT-350m has its norms behind each part, and none at the end.
    served = {"do_layer_norm_before": True, "_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True}
    for key, value in {**served, "word_embed_proj_dim": config.hidden_size}.items():
        check_setting(config, key, value, is_read=True)
    return with_layers(config, str(config.activation_function))


def with_layers(config: PretrainedConfig, activation: str) -> ModelDescription:
    """A model of OPT's layers with this activation."""
    norm = layer_norm(1e-5)
    head_dim = config.hidden_size // config.num_attention_heads
    layer = LayerDescription(
        attention_norm=norm("self_attn_layer_norm"),
        attention=AttentionDescription(
            qkv=projection("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            out=projection("self_attn.out_proj"),
            scaling=head_dim**-0.5,
            rotary=None,
        ),
        feed_forward_norm=norm("final_layer_norm"),
        feed_forward=FeedForwardDescription(
            inner=projection("fc1"),
            outer=projection("fc2"),
            activation=activation,
            is_gated=False,
        ),
    )
    return ModelDescription(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads,
        head_dim=head_dim,
        stack="decoder.layers",
        layers=(layer,) * config.num_hidden_layers,
        embedding="decoder.embed_tokens",
        positions="decoder.embed_positions",
        position_offset=2,
        final_norm=norm("decoder.final_layer_norm"),
    )


FAMILY = Family("opt", "OPTForCausalLM", describe)
