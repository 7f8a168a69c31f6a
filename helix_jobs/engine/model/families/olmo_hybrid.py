"""OLMo Hybrid: the gated delta rule, with doubled rates, in most layers; OLMo 2's layers with attention."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.model.families import olmo2
from helix_jobs.engine.model.families.delta_layers import delta_layers
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import projection, rms_norm
from helix_jobs.engine.model.recurrence_description import DeltaRuleDescription

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import LayerDescription, ModelDescription

_BLOCK: Final = "linear_attn"
# Of the norm inside the delta rule, whatever config.json says of the others.
_EPS: Final = 1e-5


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    is_delta, norm = delta_layers(config), rms_norm(config.rms_norm_eps)
    parts = ("q_proj", "k_proj", "v_proj", "b_proj", "a_proj", "g_proj")
    delta = DeltaRuleDescription(
        inner=projection(*(f"{_BLOCK}.{part}" for part in parts)),
        is_grouped=False,
        module=_BLOCK,
        out=projection(f"{_BLOCK}.o_proj"),
        num_key_heads=config.linear_num_key_heads,
        num_value_heads=config.linear_num_value_heads,
        key_dim=config.linear_key_head_dim,
        value_dim=config.linear_value_head_dim,
        activation=config.hidden_act,
        eps=_EPS,
        norm="o_norm",
        rate_scale=2.0 if config.linear_allow_neg_eigval else 1.0,
    )

    def layer(index: int, own: LayerDescription) -> LayerDescription:
        if not is_delta[index]:
            return own
        return replace(
            own,
            attention_norm=norm("input_layernorm"),
            attention=None,
            recurrence=delta,
            attention_out_norm=None,
            feed_forward_norm=norm("post_attention_layernorm"),
            feed_forward_out_norm=None,
        )

    model = olmo2.describe(config).with_layers(layer)
    if (config.rope_parameters or {}).get("rope_theta") is None:
        model = model.with_attention(lambda _, own: replace(own, rotary=None))
    return model


FAMILY = Family(
    "olmo_hybrid",
    "OlmoHybridForCausalLM",
    describe,
    renames=(
        (".attention_layer_norm.", ".input_layernorm."),
        (".feedforward_layer_norm.", ".post_attention_layernorm."),
    ),
    joins=((("q_conv1d.weight", "k_conv1d.weight", "v_conv1d.weight"), "conv1d.weight"),),
    needs_transformers_5=True,
)
