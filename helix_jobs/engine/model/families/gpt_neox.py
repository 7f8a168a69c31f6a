"""GPT-NeoX (Pythia): layer norms, partly rotated heads, attention and feed-forward side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import (
    AttentionDescription,
    FeedForwardDescription,
    LayerDescription,
    ModelDescription,
)
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_norm, projection

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = layer_norm(config.layer_norm_eps)
    head_dim = config.hidden_size // config.num_attention_heads
    layer = LayerDescription(
        attention_norm=norm("input_layernorm"),
        attention=AttentionDescription(
            qkv=projection("attention.query_key_value"),
            out=projection("attention.dense"),
            scaling=head_dim**-0.5,
            is_grouped=True,
        ),
        feed_forward_norm=norm("post_attention_layernorm"),
        feed_forward=FeedForwardDescription(
            inner=projection("mlp.dense_h_to_4h"),
            outer=projection("mlp.dense_4h_to_h"),
            activation=str(config.hidden_act),
            is_gated=False,
        ),
        is_parallel=bool(config.use_parallel_residual),
    )
    return ModelDescription(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads,
        head_dim=head_dim,
        layers=(layer,) * config.num_hidden_layers,
        embedding="embed_in",
        final_norm=norm("final_layer_norm"),
    )


FAMILY = Family("gpt_neox", "GPTNeoXForCausalLM", describe)
