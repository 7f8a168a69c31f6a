"""Nemotron-H and Nemotron 3: each layer is Mamba-2, attention, a feed-forward or experts alone.

Time steps are not limited. transformers 5 raises those of a prompt to ``time_step_min``, and does not raise those of
the tokens that it generates.

Trade-off: no limit lets a token's state depend on the tokens before it alone. Then a prompt may begin behind an earlier
answer, and a preempted sequence is computed anew. With transformers' rule a state would depend on where a prompt ended.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.model.description import (
    AttentionDescription,
    FeedForwardDescription,
    LayerDescription,
    ModelDescription,
    UnsupportedSettingError,
)
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import (
    FULL,
    head_dim,
    num_kv_heads,
    plain_feed_forward,
    projection,
    rms_norm,
)
from helix_jobs.engine.model.families.sparse import deepseek_router, experts
from helix_jobs.engine.model.recurrence_description import MambaDescription

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.expert_description import ExpertsDescription

_MAMBA: Final = "linear_attention"
_DENSE: Final = "mlp"
_SPARSE: Final = "moe"
_BLOCK: Final = "mixer"


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    types = tuple(config.layers_block_type)
    unknown = sorted({*types} - {_MAMBA, FULL, _DENSE, _SPARSE})
    if unknown:
        raise UnsupportedSettingError(f"has layers of type {unknown[0]!r}; supported are {_MAMBA}, {FULL}, mlp and moe")
    if FULL not in types:
        raise UnsupportedSettingError("has no layer with attention (layers_block_type)")
    norm = rms_norm(config.layer_norm_epsilon)
    nothing = LayerDescription(attention_norm=None, attention=None, feed_forward_norm=None, feed_forward=None)
    mixing = replace(nothing, attention_norm=norm("norm"))
    alone = replace(nothing, feed_forward_norm=norm("norm"))
    layers = {
        _MAMBA: replace(mixing, recurrence=_mamba(config)),
        FULL: replace(mixing, attention=_attention(config)),
        _DENSE: replace(alone, feed_forward=_feed_forward(config, _BLOCK)),
        _SPARSE: replace(alone, experts=_experts(config) if _SPARSE in types else None),
    }
    return ModelDescription(
        num_heads=config.num_attention_heads,
        num_kv_heads=num_kv_heads(config),
        head_dim=head_dim(config),
        embedding="embeddings",
        layers=tuple(layers[kind] for kind in types),
        final_norm=norm("norm_f"),
    )


def _mamba(config: PretrainedConfig) -> MambaDescription:
    limit = tuple(config.time_step_limit)
    if limit != (0.0, math.inf):
        raise UnsupportedSettingError(f"limits the time steps of its recurrent layers (time_step_limit {limit})")
    return MambaDescription(
        inner=projection(f"{_BLOCK}.in_proj"),
        module=_BLOCK,
        out=projection(f"{_BLOCK}.out_proj"),
        num_heads=config.mamba_num_heads,
        head_dim=config.mamba_head_dim,
        num_groups=config.n_groups,
        state_dim=config.ssm_state_size,
        activation=config.mamba_hidden_act,
        eps=float(config.layer_norm_epsilon),
    )


def _attention(config: PretrainedConfig) -> AttentionDescription:
    return AttentionDescription(
        qkv=projection(f"{_BLOCK}.q_proj", f"{_BLOCK}.k_proj", f"{_BLOCK}.v_proj"),
        out=projection(f"{_BLOCK}.o_proj"),
        scaling=head_dim(config) ** -0.5,
        rotary=None,
    )


def _feed_forward(config: PretrainedConfig, module: str) -> FeedForwardDescription:
    return plain_feed_forward(config.mlp_hidden_act, f"{module}.up_proj", f"{module}.down_proj")


def _experts(config: PretrainedConfig) -> ExpertsDescription:
    if config.moe_latent_size is not None:
        raise UnsupportedSettingError(
            f"has experts that read a narrower product of the token (moe_latent_size {config.moe_latent_size!r:.40})"
        )
    shared = _feed_forward(config, f"{_BLOCK}.shared_experts")
    made = experts(config.mlp_hidden_act, deepseek_router(config, _BLOCK), _BLOCK, shared)
    return replace(made, inner=f"{_BLOCK}.experts.up_proj", is_gated=False)


def difference(config: PretrainedConfig) -> str | None:
    """See ``Family``."""
    if not config.time_step_min > 0 or _MAMBA not in config.layers_block_type:
        return None
    return (
        f"transformers raises the time steps of a prompt to {config.time_step_min:g} (time_step_min), and Helix "
        "computes them as they are"
    )


FAMILY = Family(
    "nemotron_h",
    "NemotronHForCausalLM",
    describe,
    renames=(("backbone.", "model."),),
    draft_head="mtp.",
    needs_transformers_5=True,
    layer_lists=("layer_types", "layers_block_type", "hybrid_override_pattern"),
    difference=difference,
)
