"""Architectures of GGUF files without experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.gguf_family import (
    ATTENTION,
    FEED_FORWARD,
    HEAD_NORMS,
    LLAMA,
    NORMS,
    NORMS_AROUND,
    PAIRS,
    GgufFamily,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

# Sizes of which scores are divided by the root of a head's share of the hidden size, by their number of layers: Gemma 2
# 27B and Gemma 3 27B. Files do not state it.
_SHARES: Final = {"gemma2": 46, "gemma3": 62}


def _gemma2_scores(settings: Mapping[str, Any]) -> dict[str, Any]:
    return _gemma_scores(settings, _SHARES["gemma2"])


def _gemma3_scores(settings: Mapping[str, Any]) -> dict[str, Any]:
    return _gemma_scores(settings, _SHARES["gemma3"])


def _gemma_scores(settings: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    share = settings["embedding_length"] // settings["attention.head_count"]
    width = settings.get("attention.key_length") or share
    return {"query_pre_attn_scalar": share if settings["block_count"] == num_layers else width}


_GRANITE_SCALES: Final = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_STACKED: Final = {
    **NORMS,
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2: Final = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}

LLAMA_FAMILY: Final = GgufFamily(model_type="llama", modules=LLAMA, permuted=PAIRS, has_frequencies=True)

DENSE_FAMILIES: Final = {
    "llama": LLAMA_FAMILY,
    "qwen2": GgufFamily(model_type="qwen2", modules=LLAMA),
    "qwen3": GgufFamily(model_type="qwen3", modules={**LLAMA, **HEAD_NORMS}),
    "phi3": GgufFamily(
        model_type="phi3", modules=_STACKED, window="all", scalings=frozenset({"longrope"}), rotates_part=True
    ),
    "gpt2": GgufFamily(
        model_type="gpt2",
        modules=_GPT2,
        outer={"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f", "output": "lm_head"},
        layers="h",
        transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
        settings={"feed_forward_length": "n_inner"},
        epsilon=("attention.layer_norm_epsilon", "layer_norm_epsilon"),
    ),
    "gemma": GgufFamily(model_type="gemma", modules=LLAMA, constants={"hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": GgufFamily(
        model_type="gemma2",
        modules={**ATTENTION, **FEED_FORWARD, **NORMS_AROUND},
        optional={
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        constants={"attn_logit_softcapping": None, "final_logit_softcapping": None},
        made=_gemma2_scores,
        window=2,
    ),
    "gemma3": GgufFamily(
        model_type="gemma3_text",
        modules={**ATTENTION, **FEED_FORWARD, **NORMS_AROUND, **HEAD_NORMS},
        optional={"final_logit_softcapping": "final_logit_softcapping"},
        made=_gemma3_scores,
        window=6,
        scalings=frozenset({"linear"}),
        local_theta=10000.0,
    ),
    "smollm3": GgufFamily(
        model_type="smollm3",
        modules=LLAMA,
        permuted=PAIRS,
        constants={"no_rope_layer_interval": 4, "use_sliding_window": False},
        scalings=frozenset({"yarn"}),
    ),
    "granite": GgufFamily(model_type="granite", modules=LLAMA, permuted=PAIRS, settings=_GRANITE_SCALES),
    "olmo2": GgufFamily(
        model_type="olmo2",
        modules={
            **ATTENTION,
            **FEED_FORWARD,
            **HEAD_NORMS,
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
    ),
}
