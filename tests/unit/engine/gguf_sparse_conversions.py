"""What llama.cpp's converter makes of tiny models with experts."""

from __future__ import annotations

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
    afmoe,
    deepseek,
    ernie_moe,
    exaone_moe,
    gemma4,
    gpt_oss,
    granitemoe,
    lfm2,
    minimax,
    qwen3next,
    qwen35,
    with_experts_apart,
)

_COUNTS = {"expert_count": 6, "expert_used_count": 2}
_DEEPSEEK = {
    **_COUNTS,
    "expert_feed_forward_length": 32,
    "expert_shared_count": 1,
    "leading_dense_block_count": 1,
    "expert_weights_scale": 1.5,
    "expert_weights_norm": True,
}
_DEEPSEEK_OVERRIDES = {
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
}
_GATED_EXPERTS = {
    **_COUNTS,
    "expert_feed_forward_length": 32,
    "expert_shared_feed_forward_length": 64,
}
_GATED_OVERRIDES = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}
_LATENT = {
    **{key: value for key, value in _DEEPSEEK.items() if key != "expert_weights_norm"},
    "attention.head_count_kv": 1,
    "attention.key_length": 40,
    "attention.value_length": 32,
    "attention.key_length_mla": 40,
    "attention.value_length_mla": 16,
    "attention.kv_lora_rank": 32,
    "rope.dimension_count": 8,
}
_LATENT_OVERRIDES = {
    **_DEEPSEEK_OVERRIDES,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}

SPARSE_CONVERSIONS = {
    "lfm2moe": Conversion(
        model_type="lfm2_moe",
        settings={
            **_COUNTS,
            "expert_feed_forward_length": 32,
            "expert_gating_func": 2,
            "leading_dense_block_count": 1,
            "attention.head_count_kv": [0, 2, 0],
            "shortconv.l_cache": 3,
        },
        overrides={"conv_L_cache": 3, "tie_word_embeddings": True, "moe_intermediate_size": 32},
        convert=lfm2,
    ),
    "gpt-oss": Conversion(
        model_type="gpt_oss",
        settings={
            **YARN_SETTINGS,
            **_COUNTS,
            "attention.sliding_window": 7,
            "expert_feed_forward_length": 96,
        },
        overrides={"rope_parameters": {**YARN, "truncate": False}},
        convert=gpt_oss,
    ),
    "granitemoe": Conversion(
        model_type="granitemoe",
        settings={**GRANITE_SETTINGS, **_COUNTS},
        overrides=GRANITE,
        convert=granitemoe,
    ),
    "granitemoe:shared": Conversion(
        model_type="granitemoeshared",
        settings={**GRANITE_SETTINGS, **_COUNTS, "expert_shared_feed_forward_length": 64},
        overrides={**GRANITE, "shared_intermediate_size": 64},
        convert=granitemoe,
    ),
    "glm4moe": Conversion(
        model_type="glm4_moe",
        settings={
            **_DEEPSEEK,
            "expert_gating_func": 2,
            "rope.dimension_count": 8,
            "nextn_predict_layers": 1,
            "block_count": 4,
        },
        overrides={
            **_DEEPSEEK_OVERRIDES,
            "use_qk_norm": True,
            "attention_bias": True,
            "rope_parameters": HALF,
        },
        convert=with_experts_apart,
        more={
            "blk.3.attn_norm.weight": torch.ones(64),
            "blk.3.nextn.eh_proj.weight": torch.ones(64, 128),
        },
    ),
    "dots1": Conversion(
        model_type="dots1",
        settings=_DEEPSEEK,
        overrides=_DEEPSEEK_OVERRIDES,
        convert=with_experts_apart,
    ),
    "ernie4_5-moe": Conversion(
        model_type="ernie4_5_moe",
        settings={
            **_COUNTS,
            "expert_feed_forward_length": 32,
            "expert_shared_count": 2,
            "expert_shared_feed_forward_length": 64,
            "leading_dense_block_count": 1,
            "interleave_moe_layer_step": 1,
        },
        overrides={
            "moe_num_shared_experts": 2,
            "moe_intermediate_size": 32,
            "moe_layer_start_index": 1,
            "num_hidden_layers": 3,
        },
        convert=ernie_moe,
    ),
    "hunyuan-moe": Conversion(
        model_type="hunyuan_v1_moe",
        settings={
            **_COUNTS,
            "expert_feed_forward_length": 96,
            "expert_shared_count": 1,
            "expert_shared_feed_forward_length": 96,
        },
        overrides={"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        convert=with_experts_apart,
    ),
    "phimoe": Conversion(
        model_type="phimoe",
        settings={
            **_COUNTS,
            "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": 1.19,
            "attention.sliding_window": 9,
        },
        overrides={
            "sliding_window": 9,
            "attention_bias": True,
            "lm_head_bias": True,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5],
                "long_factor": [1.0, 2.0, 3.0, 4.0, 8.0, 16.0, 20.0, 24.0],
                "short_mscale": 1.243163121016122,
                "long_mscale": 1.243163121016122,
                "original_max_position_embeddings": 64,
            },
            "original_max_position_embeddings": 64,
        },
        convert=with_experts_apart,
        more={
            "rope_factors_short.weight": torch.tensor([1.0, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5]),
            "rope_factors_long.weight": torch.tensor([1.0, 2.0, 3.0, 4.0, 8.0, 16.0, 20.0, 24.0]),
        },
    ),
    "exaone-moe": Conversion(
        model_type="exaone_moe",
        settings={
            **_DEEPSEEK,
            "expert_shared_count": 2,
            "expert_shared_feed_forward_length": 64,
            "expert_gating_func": 2,
            "expert_group_count": 3,
            "expert_group_used_count": 2,
            "attention.sliding_window": 9,
            # Of the three layers; a fourth one only drafts.
            "attention.sliding_window_pattern": [True, True, False],
            "nextn_predict_layers": 1,
            "block_count": 4,
            "rope.scaling.type": "none",
        },
        overrides={
            **{key: value for key, value in _DEEPSEEK_OVERRIDES.items() if key != "n_shared_experts"},
            "num_shared_experts": 2,
            "n_group": 3,
            "topk_group": 2,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 9,
        },
        convert=exaone_moe,
        more={
            "blk.3.attn_norm.weight": torch.ones(64),
            "blk.3.nextn.eh_proj.weight": torch.ones(64, 128),
        },
    ),
    "afmoe": Conversion(
        model_type="afmoe",
        settings={
            **_COUNTS,
            "expert_feed_forward_length": 32,
            "expert_shared_count": 2,
            "leading_dense_block_count": 1,
            "expert_weights_scale": 1.5,
            "expert_weights_norm": True,
            "expert_gating_func": 2,
            "attention.sliding_window": 9,
        },
        overrides={
            "moe_intermediate_size": 32,
            "num_shared_experts": 2,
            "num_dense_layers": 1,
            "num_hidden_layers": 4,
            "route_scale": 1.5,
            "mup_enabled": True,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "sliding_window": 9,
        },
        convert=afmoe,
    ),
    "qwen3vlmoe": Conversion(
        model_type="qwen3_moe",
        settings={
            **_COUNTS,
            "expert_feed_forward_length": 32,
            "rope.dimension_sections": [4, 2, 2, 0],
            "n_deepstack_layers": 3,
        },
        overrides={"moe_intermediate_size": 32, "norm_topk_prob": True},
        convert=with_experts_apart,
    ),
    "qwen35moe": Conversion(
        model_type="qwen3_5_moe_text",
        settings={**DELTA, **_GATED_EXPERTS},
        overrides={**DELTA_OVERRIDES, **_GATED_OVERRIDES},
        convert=qwen35,
        leave_out=("feed_forward_length",),
    ),
    "qwen3next": Conversion(
        model_type="qwen3_next",
        settings={**DELTA, **_GATED_EXPERTS},
        overrides={**DELTA_OVERRIDES, **_GATED_OVERRIDES},
        convert=qwen3next,
    ),
    "gemma4:experts": Conversion(
        model_type="gemma4_text",
        settings={
            **GEMMA4,
            **_COUNTS,
            "attention.shared_kv_layers": 0,
            "embedding_length_per_layer_input": 0,
            "expert_feed_forward_length": 32,
            "attention.head_count_kv": [2, 1, 2, 1],
        },
        overrides={
            **GEMMA4_OVERRIDES,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
        convert=gemma4,
        more=GEMMA4_FREQUENCIES,
    ),
    "deepseek2": Conversion(
        model_type="deepseek_v2",
        settings={**_LATENT, "expert_group_count": 3, "expert_group_used_count": 2},
        overrides={
            **_LATENT_OVERRIDES,
            "norm_topk_prob": False,
            "q_lora_rank": None,
            "topk_method": "group_limited_greedy",
            "n_group": 3,
            "topk_group": 2,
        },
        convert=deepseek,
    ),
    "deepseek2:third": Conversion(
        model_type="deepseek_v3",
        settings={
            **_LATENT,
            **YARN_SETTINGS,
            "rope.scaling.yarn_log_multiplier": 0.1,
            "attention.q_lora_rank": 32,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
            "expert_group_count": 1,
            "expert_group_used_count": 1,
        },
        overrides={
            **_LATENT_OVERRIDES,
            "q_lora_rank": 32,
            "n_group": 1,
            "topk_group": 1,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
        convert=deepseek,
    ),
    "minimax-m2": Conversion(
        model_type="minimax_m2",
        settings={**_COUNTS, "expert_feed_forward_length": 96, "expert_gating_func": 2, "rope.dimension_count": 8},
        overrides={"rope_parameters": HALF},
        convert=minimax,
    ),
}
