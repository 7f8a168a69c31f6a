"""What llama.cpp's converter makes of tiny models without experts."""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.unit.engine.gguf_conversion_base import (
    DELTA,
    DELTA_OVERRIDES,
    GEMMA4,
    GEMMA4_FREQUENCIES,
    GEMMA4_OVERRIDES,
    GRANITE,
    GRANITE_SETTINGS,
    HALF,
    YARN,
    YARN_SETTINGS,
    Conversion,
)
from tests.unit.engine.gguf_converters import (
    Gemma3n,
    activations,
    apertus,
    gemma4,
    lfm2,
    nemotron,
    qwen35,
    with_pairs_together,
    with_whole_norms,
)


def _gemma(**overrides: Any) -> dict[str, Any]:
    return {"tie_word_embeddings": True, **overrides}


_GEMMA2 = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "sliding_window": 9}
_GEMMA3 = {
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 2,
    "num_hidden_layers": 12,
    "initializer_range": 0.2,
    "sliding_window": 9,
    "query_pre_attn_scalar": 16,
}
_GEMMA3_ROPE = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
_LAYER_NORM = {"attention.layer_norm_epsilon": 1e-5}
_RMS = ("attention.layer_norm_rms_epsilon",)
_SHORT, _LONG = [1.0, 1.0, 1.25, 1.5, 2.0, 2.5], [1.0, 2.0, 3.0, 4.0, 8.0, 16.0]
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": _SHORT,
    "long_factor": _LONG,
    "original_max_position_embeddings": 64,
    "partial_rotary_factor": 0.75,
}
# The square root of 1 + log(256 / 64) / log(64), of the whole context and the original one.
_LONGROPE_SCALE = 1.1547005383792515

_MINICPM3 = {
    "attention.head_count_kv": 4,
    "attention.key_length": 40,
    "attention.q_lora_rank": 32,
    "attention.kv_lora_rank": 32,
    "rope.dimension_count": 8,
}
_MINICPM3_OVERRIDES = {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}

DENSE_CONVERSIONS = {
    "phi3:long": Conversion(
        model_type="phi3",
        settings={
            "rope.dimension_count": 12,
            "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": _LONGROPE_SCALE,
            "attention.sliding_window": 0,
        },
        overrides={"rope_parameters": _LONGROPE, "original_max_position_embeddings": 64},
        more={"rope_factors_long.weight": torch.tensor(_LONG), "rope_factors_short.weight": torch.tensor(_SHORT)},
    ),
    "gemma": Conversion(model_type="gemma", overrides=_gemma(hidden_act="gelu_pytorch_tanh"), convert=with_whole_norms),
    "gemma2": Conversion(
        model_type="gemma2",
        settings={
            "attention.sliding_window": 9,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 7.0,
        },
        overrides=_gemma(**_GEMMA2, query_pre_attn_scalar=16, attn_logit_softcapping=5.0, final_logit_softcapping=7.0),
        convert=with_whole_norms,
    ),
    "gemma2:27b": Conversion(
        model_type="gemma2",
        settings={"attention.sliding_window": 9, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 7.0},
        overrides=_gemma(
            num_hidden_layers=46,
            layer_types=["sliding_attention", "full_attention"] * 23,
            sliding_window=9,
            head_dim=32,
            query_pre_attn_scalar=16,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=7.0,
        ),
        convert=with_whole_norms,
    ),
    "gemma3": Conversion(
        model_type="gemma3_text",
        settings={
            "attention.sliding_window": 9,
            "rope.freq_base": 1000000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
        overrides=_gemma(
            **_GEMMA3,
            rope_parameters={
                **_GEMMA3_ROPE,
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            },
        ),
        convert=with_whole_norms,
    ),
    "smollm3": Conversion(
        model_type="smollm3",
        overrides={
            "num_hidden_layers": 5,
            "no_rope_layer_interval": 4,
        },
        convert=with_pairs_together,
    ),
    "granite": Conversion(
        model_type="granite",
        settings=GRANITE_SETTINGS,
        overrides=GRANITE,
        convert=with_pairs_together,
    ),
    "olmo2": Conversion(model_type="olmo2"),
    "olmo2:olmo3": Conversion(
        model_type="olmo3",
        settings={
            **YARN_SETTINGS,
            "attention.sliding_window": 9,
            "attention.sliding_window_pattern": [True, False],
        },
        overrides={
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": YARN,
            },
        },
    ),
    "exaone4": Conversion(
        model_type="exaone4",
        settings={"attention.sliding_window": 9, "attention.sliding_window_pattern": [True, False]},
        overrides={"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "exaone4:plain": Conversion(
        model_type="exaone4", overrides={"layer_types": ["full_attention"] * 2, "sliding_window": None}
    ),
    "olmo": Conversion(
        model_type="olmo",
        settings={**_LAYER_NORM, "attention.clamp_kqv": 0.5},
        overrides={"clip_qkv": 0.5},
        convert=with_pairs_together,
        leave_out=_RMS,
    ),
    "mistral3": Conversion(model_type="mistral", convert=with_pairs_together),
    "mistral3:ministral": Conversion(
        model_type="ministral3",
        settings={
            **YARN_SETTINGS,
            "rope.scaling.original_context_length": 16,
            "rope.scaling.yarn_log_multiplier": 1.0,
            "attention.temperature_scale": 0.3,
        },
        convert=with_pairs_together,
    ),
    "command-r": Conversion(
        model_type="cohere",
        settings={**_LAYER_NORM, "logit_scale": 0.25},
        overrides={"logit_scale": 0.25, "tie_word_embeddings": True},
        leave_out=_RMS,
    ),
    "command-r:plus": Conversion(
        model_type="cohere",
        settings={**_LAYER_NORM, "logit_scale": 0.25},
        overrides={"logit_scale": 0.25, "use_qk_norm": True, "tie_word_embeddings": True},
        leave_out=_RMS,
    ),
    "cohere2": Conversion(
        model_type="cohere2",
        settings={**_LAYER_NORM, "logit_scale": 0.25, "attention.sliding_window": 9},
        overrides={
            "logit_scale": 0.25,
            "tie_word_embeddings": True,
            "sliding_window": 9,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        },
        leave_out=_RMS,
    ),
    "glm4": Conversion(
        model_type="glm4",
        settings={"rope.dimension_count": 8},
        overrides={"attention_bias": True, "rope_parameters": HALF},
    ),
    "nemotron": Conversion(
        model_type="nemotron",
        settings={**_LAYER_NORM, "rope.dimension_count": 8, "rope.scaling.type": "none"},
        overrides={"rope_parameters": HALF},
        convert=nemotron,
    ),
    "stablelm": Conversion(
        model_type="stablelm",
        settings={**_LAYER_NORM, "rope.dimension_count": 8, "use_parallel_residual": False},
        overrides={"rope_parameters": HALF, "use_qkv_bias": True, "use_parallel_residual": False},
        leave_out=_RMS,
    ),
    "arcee": Conversion(
        model_type="arcee",
        settings=YARN_SETTINGS,
        overrides={"rope_parameters": YARN},
        convert=with_pairs_together,
    ),
    "apertus": Conversion(
        model_type="apertus",
        overrides={"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        convert=apertus,
        stated=activations,
    ),
    "jais2": Conversion(model_type="jais2", settings=_LAYER_NORM, leave_out=_RMS),
    "minicpm3": Conversion(model_type="minicpm3", settings=_MINICPM3, overrides=_MINICPM3_OVERRIDES),
    "minicpm3:long": Conversion(
        model_type="minicpm3",
        settings=_MINICPM3,
        overrides={
            **_MINICPM3_OVERRIDES,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": _SHORT[2:],
                "long_factor": _LONG[2:],
                "original_max_position_embeddings": 256,
            },
            "original_max_position_embeddings": 256,
        },
        more={
            "rope_factors_long.weight": torch.tensor(_LONG[2:]),
            "rope_factors_short.weight": torch.tensor(_SHORT[2:]),
        },
    ),
    "seed_oss": Conversion(model_type="seed_oss", overrides={"attention_bias": True, "attention_out_bias": False}),
    "ernie4_5": Conversion(model_type="ernie4_5"),
    "hunyuan-dense": Conversion(
        model_type="hunyuan_v1_dense",
        settings={"rope.freq_base": 500.0, "rope.scaling.type": "none", "rope.scaling.factor": 1.0},
        overrides={"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "lfm2": Conversion(
        model_type="lfm2",
        settings={"attention.head_count_kv": [0, 2, 0], "shortconv.l_cache": 3},
        overrides={"conv_L_cache": 3, "intermediate_size": 96},
        convert=lfm2,
    ),
    "qwen35": Conversion(
        model_type="qwen3_5_text",
        settings={**DELTA, "rope.dimension_sections": [2, 1, 1, 0], "nextn_predict_layers": 1, "block_count": 5},
        overrides=DELTA_OVERRIDES,
        convert=qwen35,
        more={"blk.4.nextn.eh_proj.weight": torch.ones(64, 128), "blk.4.attn_norm.weight": torch.ones(64)},
    ),
    "qwen35:one value head a key head": Conversion(
        model_type="qwen3_5_text",
        settings={**DELTA, "ssm.group_count": 6},
        # Wider weights make logits of which transformers' own float32 loses four digits.
        overrides={**DELTA_OVERRIDES, "linear_num_key_heads": 6, "initializer_range": 0.2},
        convert=qwen35,
    ),
    "gemma4": Conversion(
        model_type="gemma4_text",
        settings={
            **GEMMA4,
            "attention.shared_kv_layers": 2,
            "embedding_length_per_layer_input": 32,
            "feed_forward_length": [96, 96, 192, 192],
        },
        overrides={
            **GEMMA4_OVERRIDES,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 32,
            "use_double_wide_mlp": True,
        },
        convert=gemma4,
        # The last layers read the keys of others, and checkpoints have some of their own all the same.
        more={
            **GEMMA4_FREQUENCIES,
            "blk.2.attn_k.weight": torch.ones(32, 64),
            "blk.3.attn_k_norm.weight": torch.ones(32),
        },
    ),
    "gemma3n": Conversion(
        model_type="gemma3n_text",
        settings={
            "attention.sliding_window": 9,
            "attention.sliding_window_pattern": [True, False, True, False],
            "attention.shared_kv_layers": 2,
            "embedding_length_per_layer_input": 32,
            "feed_forward_length": [96, 64, 96, 96],
            "altup.active_idx": 1,
            "altup.num_inputs": 4,
            # The bounds of 0.95 and 0.6.
            "activation_sparsity_scale": [1.6448533535003662, -math.inf, 0.25334715843200684, -math.inf],
            "rope.freq_base": 1000000.0,
        },
        overrides={
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 9,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 32,
            "vocab_size_per_layer_input": 200,
            "intermediate_size": [96, 64, 96, 96],
            "altup_active_idx": 1,
            "altup_num_inputs": 4,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.95, 0.0, 0.6, 0.0],
            "tie_word_embeddings": True,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
            },
        },
        convert=Gemma3n(),
    ),
    "qwen2vl": Conversion(model_type="qwen2", settings={"rope.dimension_sections": [4, 2, 2, 0]}),
    "qwen3vl": Conversion(
        model_type="qwen3", settings={"rope.dimension_sections": [4, 2, 2, 0], "n_deepstack_layers": 3}
    ),
}
