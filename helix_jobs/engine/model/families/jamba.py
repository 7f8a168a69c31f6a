"""Jamba: Mamba in most layers, attention without rotation in a few, and experts in every second layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.bamba import feed_forward
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import FULL, mixed_types, projection, rms_norm
from helix_jobs.engine.model.families.sparse import experts, router, with_experts
from helix_jobs.engine.model.recurrence_description import SelectiveScanDescription

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import LayerDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    types, mamba, norm = mixed_types(config, "linear_attention"), _mamba(config), rms_norm(config.rms_norm_eps)

    def layer(index: int, own: LayerDescription) -> LayerDescription:
        own = replace(own, feed_forward_norm=norm("pre_ff_layernorm"), feed_forward=feed_forward(config))
        return own if types[index] == FULL else replace(own, attention=None, recurrence=mamba)

    model = llama.describe(config).with_attention(lambda _, own: replace(own, rotary=None)).with_layers(layer)
    model = replace(model, final_norm=norm("final_layernorm"))
    counts = config.layers_num_experts
    if max(counts) == 1:
        return model
    choice = router(
        config.num_experts,
        config.num_experts_per_tok,
        "feed_forward.router.weight",
        is_normalised=False,
        rounds_weights=True,
    )
    made = experts(config.hidden_act, choice, "feed_forward")
    return with_experts(model, lambda _: made, lambda index: counts[index] > 1)


def _mamba(config: PretrainedConfig) -> SelectiveScanDescription:
    return SelectiveScanDescription(
        inner=projection("mamba.in_proj"),
        module="mamba",
        selection="mamba.x_proj",
        steps="mamba.dt_proj",
        norms=("mamba.dt_layernorm", "mamba.b_layernorm", "mamba.c_layernorm"),
        out=projection("mamba.out_proj"),
        activation=str(config.hidden_act),
        eps=float(config.rms_norm_eps),
    )


FAMILY = Family("jamba", "JambaForCausalLM", describe, needs_transformers_5=True)
