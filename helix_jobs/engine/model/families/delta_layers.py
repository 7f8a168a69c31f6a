"""What Qwen3-Next and Qwen 3.5 have in common: Qwen 3's layers, gated, and layers of the gated delta rule."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.settings import mixed_types, projection, rms_norm
from helix_jobs.engine.model.recurrence_description import DeltaRuleDescription

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import LayerDescription, ModelDescription, ProjectionDescription

_DELTA: Final = "linear_attention"


def with_delta_layers(config: PretrainedConfig, inner: ProjectionDescription, *, is_grouped: bool) -> ModelDescription:
    """The description of such a model with Qwen 3's feed-forwards.

    Args:
        config: Its configuration.
        inner: The first product of a layer of the delta rule.
        is_grouped: See ``DeltaRuleDescription``.

    Raises:
        UnsupportedSettingError: See ``mixed_types``.
    """
    is_delta = delta_layers(config)
    norm = rms_norm(config.rms_norm_eps, offset=1.0)
    delta = DeltaRuleDescription(
        inner=inner,
        is_grouped=is_grouped,
        module="linear_attn",
        out=projection("linear_attn.out_proj"),
        num_key_heads=config.linear_num_key_heads,
        num_value_heads=config.linear_num_value_heads,
        key_dim=config.linear_key_head_dim,
        value_dim=config.linear_value_head_dim,
        activation=config.hidden_act,
        eps=float(config.rms_norm_eps),
    )

    def layer(index: int, own: LayerDescription) -> LayerDescription:
        return replace(own, attention=None, recurrence=delta) if is_delta[index] else own

    return (
        llama.describe(config, norm)
        .with_attention(
            lambda _, own: replace(
                own, query_norm=norm("self_attn.q_norm"), key_norm=norm("self_attn.k_norm"), has_gate=True
            )
        )
        .with_layers(layer)
    )


def delta_layers(config: PretrainedConfig) -> tuple[bool, ...]:
    """Whether each layer is one of the delta rule.

    Raises:
        UnsupportedSettingError: See ``mixed_types``.
    """
    return tuple(kind == _DELTA for kind in mixed_types(config, _DELTA))
