"""Falcon: queries that share one key, attention and feed-forward side by side, one norm or two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import (
    AttentionDescription,
    FeedForwardDescription,
    LayerDescription,
    ModelDescription,
    UnsupportedSettingError,
)
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_norm, projection

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    if config.alibi:
        raise UnsupportedSettingError("has alibi True, biases on its scores; supported are rotary positions")
    norm = layer_norm(config.layer_norm_epsilon)
    is_new, is_parallel = config.new_decoder_architecture, config.new_decoder_architecture or config.parallel_attn
    if is_new and not config.parallel_attn:
        raise UnsupportedSettingError("is a Falcon of the new architecture with parallel_attn False; supported is True")
    if not is_new and config.parallel_attn and config.num_ln_in_parallel_attn == 2:  # noqa: PLR2004  (a setting's value)
        raise UnsupportedSettingError(
            "is a Falcon of the old architecture with num_ln_in_parallel_attn 2; supported is 1"
        )
    if not (is_new or config.multi_query) and config.num_kv_heads != config.num_attention_heads:
        raise UnsupportedSettingError(
            f"is a Falcon of the old architecture with num_kv_heads {config.num_kv_heads} and num_attention_heads "
            f"{config.num_attention_heads}; there each query has its own, or all share one (multi_query)"
        )
    has_two_norms = is_new and config.num_ln_in_parallel_attn in (None, 2)
    second = norm("ln_mlp") if has_two_norms else None if is_parallel else norm("post_attention_layernorm")
    head_dim = config.hidden_size // config.num_attention_heads
    layer = LayerDescription(
        attention_norm=norm("ln_attn" if has_two_norms else "input_layernorm"),
        attention=AttentionDescription(
            qkv=projection("self_attention.query_key_value"),
            out=projection("self_attention.dense"),
            scaling=head_dim**-0.5,
            is_grouped=is_new or not config.multi_query,
        ),
        feed_forward_norm=second,
        feed_forward=FeedForwardDescription(
            inner=projection("mlp.dense_h_to_4h"),
            outer=projection("mlp.dense_4h_to_h"),
            activation=str(config.activation),
            is_gated=False,
        ),
        is_parallel=is_parallel,
    )
    has_one_key = config.multi_query and not is_new
    return ModelDescription(
        num_heads=config.num_attention_heads,
        num_kv_heads=1 if has_one_key else config.num_kv_heads,
        head_dim=head_dim,
        stack="h",
        layers=(layer,) * config.num_hidden_layers,
        embedding="word_embeddings",
        final_norm=norm("ln_f"),
    )


FAMILY = Family("falcon", "FalconForCausalLM", describe)
