"""A.X K1: DeepSeek-V3's latent attention and experts, and a norm of what experts yield."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.latent import latents_with_experts
from helix_jobs.engine.model.families.settings import rms_norm
from helix_jobs.engine.model.families.sparse import deepseek_router, has_experts_by_layer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import LayerDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    is_sparse, norm = has_experts_by_layer(config), rms_norm(config.rms_norm_eps)

    def normed(index: int, layer: LayerDescription) -> LayerDescription:
        return replace(layer, feed_forward_out_norm=norm("mlp.post_mlp_layernorm")) if is_sparse(index) else layer

    model = latents_with_experts(
        config, deepseek_router(config), is_sparse, is_interleaved=bool(config.rope_interleave)
    )
    return model.with_layers(normed)


FAMILY = Family(
    "axk1",
    "AXK1ForCausalLM",
    describe,
    renames=((".post_mlp_layernorm.", ".mlp.post_mlp_layernorm."), (".mlp.mlp.", ".mlp.")),
    needs_transformers_5=True,
)
