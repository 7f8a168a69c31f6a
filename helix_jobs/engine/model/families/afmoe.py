"""AFMoE (Trinity): norms around each part, gated attention, and rotation in the layers with a window alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.families import llama
from helix_jobs.engine.model.families.family import Family
from helix_jobs.engine.model.families.settings import SLIDING, layer_types, projection, rms_norm, with_windows
from helix_jobs.engine.model.families.sparse import experts, router, shared_expert, with_experts

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from helix_jobs.engine.model.description import AttentionDescription, LayerDescription, ModelDescription


def describe(config: PretrainedConfig) -> ModelDescription:
    """See ``Family``."""
    norm, types = rms_norm(config.rms_norm_eps), layer_types(config)

    def attending(index: int, own: AttentionDescription) -> AttentionDescription:
        return replace(
            own,
            qkv=projection("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.gate_proj"),
            has_gate=True,
            is_gate_apart=True,
            query_norm=norm("self_attn.q_norm"),
            key_norm=norm("self_attn.k_norm"),
            rotary=own.rotary if types[index] == SLIDING else None,
        )

    def changed(_: int, layer: LayerDescription) -> LayerDescription:
        return replace(
            layer,
            attention_out_norm=norm("post_attention_layernorm"),
            feed_forward_norm=norm("pre_mlp_layernorm"),
            feed_forward_out_norm=norm("post_mlp_layernorm"),
        )

    choice = router(
        config.num_experts,
        config.num_experts_per_tok,
        "mlp.router.gate.weight",
        score="sigmoid",
        correction="mlp.expert_bias",
        sum_offset=1e-20,
        scale=float(config.route_scale),
    )
    made = experts(config.hidden_act, choice, shared=shared_expert(config.hidden_act, "mlp.shared_experts"))
    model = with_windows(llama.describe(config), config).with_layers(changed).with_attention(attending)
    model = with_experts(model, lambda _: made, lambda index: index >= config.num_dense_layers)
    return replace(model, embedding_scale=config.hidden_size**0.5) if config.mup_enabled else model


FAMILY = Family("afmoe", "AfmoeForCausalLM", describe, needs_transformers_5=True)
