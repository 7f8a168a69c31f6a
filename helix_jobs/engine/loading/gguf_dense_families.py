"""Architectures of GGUF files without experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.loading.gguf_family import (
    ATTENTION,
    FEED_FORWARD,
    HEAD_NORMS,
    LLAMA,
    NO_HEAD_SETTINGS,
    NORMS,
    NORMS_AROUND,
    PAIRS,
    ROTARY,
    SPLIT,
    GgufFamily,
    Listed,
    of,
)
from helix_jobs.engine.model.families.settings import FULL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.loading.gguf_file import GgufFile

# Sizes of which scores are divided by the root of a head's share of the hidden size, by their number of layers: Gemma 2
# 27B and Gemma 3 27B. Files do not state it.
_SHARES: Final = {"gemma2": 46, "gemma3": 62}


def _gemma2_scores(gguf: GgufFile) -> dict[str, Any]:
    return _gemma_scores(gguf.settings, _SHARES["gemma2"])


def _gemma3_scores(gguf: GgufFile) -> dict[str, Any]:
    return _gemma_scores(gguf.settings, _SHARES["gemma3"])


def layers_with_attention(gguf: GgufFile) -> dict[str, Any]:
    """LFM2's layers: those without keys are convolutions."""
    heads = gguf.settings.get("attention.head_count_kv")
    if not isinstance(heads, list):
        return {}
    return {"layer_types": [FULL if count else "conv" for count in heads]}


def _gemma_scores(settings: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    share = settings["embedding_length"] // settings["attention.head_count"]
    width = settings.get("attention.key_length") or share
    return {"query_pre_attn_scalar": share if settings["block_count"] == num_layers else width}


GRANITE_SCALES: Final = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_STACKED_FEED_FORWARD: Final = {**NORMS, "ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}
_STACKED: Final = {
    **_STACKED_FEED_FORWARD,
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
}
_UNGATED: Final = {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_ONE_NORM: Final = {**ATTENTION, **FEED_FORWARD, "attn_norm": "input_layernorm"}
_NORMS_BEHIND: Final = {
    **ATTENTION,
    **FEED_FORWARD,
    **HEAD_NORMS,
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LAYER_NORM: Final = ("attention.layer_norm_epsilon", "layer_norm_eps")
_LOGIT_SCALE: Final = {"logit_scale": "logit_scale"}
HUNYUAN_NORMS: Final = {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}
LFM2: Final = {
    "attn_norm": "operator_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
    "ffn_norm": "ffn_norm",
}
LFM2_CONV: Final = {"conv.conv.weight": of("shortconv.conv.weight", form="conv")}
LFM2_OUTER: Final = {"token_embd": "embed_tokens", "token_embd_norm": "embedding_norm", "output": "lm_head"}
LFM2_WIDTH: Final = {"shortconv.l_cache": "conv_L_cache"}
GPT2: Final = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
GPT2_OUTER: Final = {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f", "output": "lm_head"}

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
        modules=GPT2,
        outer=GPT2_OUTER,
        layers="h",
        transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
        settings={"feed_forward_length": "n_inner"},
        epsilon=("attention.layer_norm_epsilon", "layer_norm_epsilon"),
        lacks=NO_HEAD_SETTINGS | {ROTARY},
    ),
    # The language models of those that also read images; what these add to hidden states does not count for text.
    "qwen2vl": GgufFamily(model_type="qwen2", modules=LLAMA),
    "qwen3vl": GgufFamily(model_type="qwen3", modules={**LLAMA, **HEAD_NORMS}),
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
    "granite": GgufFamily(model_type="granite", modules=LLAMA, permuted=PAIRS, settings=GRANITE_SCALES),
    "olmo2": GgufFamily(model_type="olmo2", modules=_NORMS_BEHIND),
    "exaone4": GgufFamily(model_type="exaone4", modules=_NORMS_BEHIND, window=4, has_frequencies=True),
    "olmo": GgufFamily(
        model_type="olmo",
        modules={**ATTENTION, **FEED_FORWARD},
        permuted=PAIRS,
        optional={"attention.clamp_kqv": "clip_qkv"},
        epsilon=_LAYER_NORM,
    ),
    "mistral3": GgufFamily(model_type="mistral", modules=LLAMA, permuted=PAIRS),
    "command-r": GgufFamily(
        model_type="cohere",
        modules={**_ONE_NORM, **HEAD_NORMS},
        settings=_LOGIT_SCALE,
        epsilon=_LAYER_NORM,
        present={"use_qk_norm": "self_attn.q_norm.weight"},
    ),
    "cohere2": GgufFamily(
        model_type="cohere2", modules=_ONE_NORM, settings=_LOGIT_SCALE, epsilon=_LAYER_NORM, window=4
    ),
    "glm4": GgufFamily(
        model_type="glm4",
        modules={
            **_STACKED_FEED_FORWARD,
            **ATTENTION,
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
        },
        rotates_part=True,
        present={"attention_bias": "self_attn.q_proj.bias"},
    ),
    "nemotron": GgufFamily(
        model_type="nemotron",
        modules={**NORMS, **ATTENTION, **_UNGATED},
        epsilon=("attention.layer_norm_epsilon", "norm_eps"),
        rotates_part=True,
    ),
    "stablelm": GgufFamily(
        model_type="stablelm",
        modules=LLAMA,
        settings={},
        optional={"use_parallel_residual": "use_parallel_residual"},
        epsilon=_LAYER_NORM,
        rotates_part=True,
        present={"use_qkv_bias": "self_attn.q_proj.bias"},
    ),
    "arcee": GgufFamily(
        model_type="arcee",
        modules={**NORMS, **ATTENTION, **_UNGATED},
        permuted=PAIRS,
        scalings=frozenset({"yarn"}),
    ),
    "seed_oss": GgufFamily(
        model_type="seed_oss",
        modules={
            **ATTENTION,
            **FEED_FORWARD,
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
        },
        present={
            "attention_bias": "self_attn.q_proj.bias",
            "attention_out_bias": "self_attn.o_proj.bias",
        },
    ),
    "apertus": GgufFamily(
        model_type="apertus",
        modules={
            **ATTENTION,
            **HEAD_NORMS,
            **_UNGATED,
            "attn_norm": "attention_layernorm",
            "ffn_norm": "feedforward_layernorm",
        },
        listed={
            "mlp.act_fn.alpha_n": Listed("xielu.alpha_n", (1,)),
            "mlp.act_fn.alpha_p": Listed("xielu.alpha_p", (1,)),
            "mlp.act_fn.beta": Listed("xielu.beta"),
            "mlp.act_fn.eps": Listed("xielu.eps"),
        },
        has_frequencies=True,
    ),
    "chatglm": GgufFamily(
        model_type="glm",
        modules={**_STACKED_FEED_FORWARD, **ATTENTION},
        parameters=SPLIT,
        rotates_part=True,
        present={"attention_bias": "self_attn.q_proj.bias"},
    ),
    "jais2": GgufFamily(
        model_type="jais2",
        modules={**NORMS, **ATTENTION, **_UNGATED},
        epsilon=_LAYER_NORM,
        present={"attention_bias": "self_attn.q_proj.bias", "mlp_bias": "mlp.up_proj.bias"},
    ),
    "ernie4_5": GgufFamily(model_type="ernie4_5", modules=LLAMA),
    "hunyuan-dense": GgufFamily(model_type="hunyuan_v1_dense", modules={**LLAMA, **HUNYUAN_NORMS}),
    "lfm2": GgufFamily(
        model_type="lfm2",
        modules={**LFM2, "ffn_gate": "feed_forward.w1", "ffn_up": "feed_forward.w3", "ffn_down": "feed_forward.w2"},
        parameters=LFM2_CONV,
        outer=LFM2_OUTER,
        settings=LFM2_WIDTH,
        constants={"block_auto_adjust_ff_dim": False},
        made=layers_with_attention,
        epsilon=("attention.layer_norm_rms_epsilon", "norm_eps"),
        by_layer=frozenset({"attention.head_count_kv"}),
    ),
}
# OLMo 3's files say olmo2.
OLMO3: Final = GgufFamily(
    model_type="olmo3",
    modules=_NORMS_BEHIND,
    window=4,
    scalings=frozenset({"yarn"}),
    local_theta="shared",
)
# Those of Ministral 3 and of Mistral Small 3 both say mistral3.
MINISTRAL3: Final = GgufFamily(
    model_type="ministral3",
    modules=LLAMA,
    permuted=PAIRS,
    scalings=frozenset({"yarn"}),
    rope_settings={"attention.temperature_scale": "llama_4_scaling_beta"},
)
