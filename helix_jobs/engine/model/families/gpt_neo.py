"""GPT-Neo and TinyStories: layer norms, learned positions, scores that are not scaled, a window in some layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import AttentionDescription, LayerDescription, ModelDescription
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_norm, plain_feed_forward, projection

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm = layer_norm(config.layer_norm_epsilon)

    def layer(kind: str) -> LayerDescription:
        window = config.window_size if kind == "local" else None
        return LayerDescription(
            attention_norm=norm("ln_1"),
            attention=AttentionDescription(
                qkv=projection("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
                out=projection("attn.attention.out_proj"),
                scaling=1.0,
                rotary=None,
                window=None if window is None or window >= config.max_position_embeddings else int(window),
            ),
            feed_forward_norm=norm("ln_2"),
            feed_forward=plain_feed_forward(config.activation_function, "mlp.c_fc", "mlp.c_proj"),
        )

    return ModelDescription(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        stack="h",
        layers=tuple(layer(kind) for kind in config.attention_layers),
        embedding="wte",
        positions="wpe",
        final_norm=norm("ln_f"),
    )


FAMILY = Family("gpt_neo", "GPTNeoForCausalLM", describe, layer_lists=("attention_layers",))
