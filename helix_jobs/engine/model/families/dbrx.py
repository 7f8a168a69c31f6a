"""DBRX: layer norms without bias, clipped queries, keys and values, and experts in every layer.

Heads are rotated by ``rope_theta`` of ``attn_config``, with which the model was trained. transformers 5 reads
``rope_parameters`` alone, and rotates by 10000 where these are not given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.model.description import (
    AttentionDescription,
    LayerDescription,
    ModelDescription,
    RotaryDescription,
    UnsupportedSettingError,
)
from helix_jobs.engine.model.expert_description import ExpertsDescription
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_norm, projection
from helix_jobs.engine.model.families.sparse import router
from helix_jobs.engine.model.rope_settings import rope_settings, rope_type

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# torch's own, which no configuration changes.
_EPS: Final = 1e-5
_EXPERTS: Final = "ffn.experts.mlp"


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm, own, clip = layer_norm(_EPS), config.attn_config, config.attn_config.clip_qkv
    head_dim = config.hidden_size // config.num_attention_heads
    if (kind := rope_type(config)) != "default":
        raise UnsupportedSettingError(f"has rotary positions of the type {kind!r:.40}")
    if getattr(own, "rope_theta", None) is None:
        raise UnsupportedSettingError("has no rope_theta in its attn_config")
    layer = LayerDescription(
        attention_norm=norm("norm_attn_norm.norm_1"),
        attention=AttentionDescription(
            qkv=projection("norm_attn_norm.attn.Wqkv"),
            out=projection("norm_attn_norm.attn.out_proj"),
            scaling=head_dim**-0.5,
            rotary=RotaryDescription(theta=float(own.rope_theta), rotary_dim=head_dim),
            clip=None if clip is None else float(clip),
        ),
        feed_forward_norm=norm("norm_attn_norm.norm_2"),
        feed_forward=None,
        experts=_experts(config),
    )
    return ModelDescription(
        num_heads=config.num_attention_heads,
        num_kv_heads=own.kv_n_heads,
        head_dim=head_dim,
        stack="blocks",
        layers=(layer,) * config.num_hidden_layers,
        embedding="wte",
        final_norm=norm("norm_f"),
    )


def _experts(config: PretrainedConfig) -> ExpertsDescription:
    own = config.ffn_config
    power = own.moe_normalize_expert_weights
    if power not in (None, 1):
        raise UnsupportedSettingError(
            f"has moe_normalize_expert_weights {power!r:.40}; supported are 1, the sum of the weights, and null"
        )
    choice = router(
        own.moe_num_experts,
        own.moe_top_k,
        "ffn.router.layer.weight",
        is_normalised=power is not None,
        rounds_weights=True,
    )
    return ExpertsDescription(
        inner=f"{_EXPERTS}.w1",
        up=f"{_EXPERTS}.v1",
        outer=f"{_EXPERTS}.w2",
        activation=str(own.ffn_act_fn.get("name", "silu")),
        router=choice,
    )


def difference(config: PretrainedConfig) -> str | None:
    """See ``Family``."""
    own, theirs = float(config.attn_config.rope_theta), float(rope_settings(config)[0].get("rope_theta", 10000.0))
    if own == theirs:
        return None
    return (
        f"transformers rotates heads by {theirs:g} (rope_parameters), and Helix by {own:g}, the rope_theta of "
        "attn_config, with which the model was trained"
    )


FAMILY = Family("dbrx", "DbrxForCausalLM", describe, needs_transformers_5=True, difference=difference)
