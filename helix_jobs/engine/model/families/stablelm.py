"""StableLM: layer norms, heads rotated in part; optionally a norm for each head, and the parts side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.description import NormDescription
from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import layer_norm

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import AttentionDescription, LayerDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    model = llama.describe(config, layer_norm(config.layer_norm_eps))

    def head_norms(name: str, count: int) -> NormDescription:
        names = tuple(f"self_attn.{name}.norms.{index}" for index in range(count))
        return NormDescription(name=None, kind="layer", eps=config.layer_norm_eps, heads=names)

    def changed(_: int, layer: LayerDescription) -> LayerDescription:
        return replace(layer, feed_forward_norm=None, is_parallel=True) if config.use_parallel_residual else layer

    def attending(_: int, own: AttentionDescription) -> AttentionDescription:
        if not config.qk_layernorm:
            return own
        return replace(
            own,
            query_norm=head_norms("q_layernorm", model.num_heads),
            key_norm=head_norms("k_layernorm", model.num_kv_heads),
        )

    return model.with_layers(changed).with_attention(attending)


FAMILY = Family("stablelm", "StableLmForCausalLM", describe)
