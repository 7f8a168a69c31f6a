"""Settings that several of the decoder's test cases share."""

from __future__ import annotations

from typing import Any

ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}
# Plain frequencies within the context that the configuration states, whatever the factor.
DYNAMIC = {"rope_type": "dynamic", "factor": 6.0}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [2.0, 4.0, 8.0, 9.0]}
PHIMOE_LONGROPE = {
    **LONGROPE,
    "rope_theta": 10000.0,
    "short_mscale": 1.2,
    "long_mscale": 1.4,
    "original_max_position_embeddings": 64,
}

# Windows shorter than most prompts; two layers, of which one has it.
WINDOW = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
ALL_WINDOWS = {**WINDOW, "layer_types": ["sliding_attention"] * 2}
BY_KIND = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
PROPORTIONAL = {
    "full_attention": {"rope_type": "proportional", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
GEMMA_4_EXPERTS = {
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "enable_moe_block": True,
    "num_experts": 6,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
}
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.2,
    "logits_scaling": 4.0,
}
# YaRN as DeepSeek has it: the temperature is a factor of the scores, and what is left of it one of the rotation.
DEEPSEEK_YARN = {**ROPES["yarn"], "rope_theta": 10000.0, "mscale": 0.7, "mscale_all_dim": 1.0}
BY_GROUP = {"topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 1}
FALCON_H1 = {
    "embedding_multiplier": 3.0,
    "lm_head_multiplier": 0.3,
    "key_multiplier": 0.4,
    "attention_in_multiplier": 0.8,
    "attention_out_multiplier": 0.6,
    "ssm_in_multiplier": 1.3,
    "ssm_out_multiplier": 0.7,
    "ssm_multipliers": [0.4, 0.6, 0.8, 1.2, 1.5],
    "mlp_multipliers": [0.7, 0.5],
}
FALCON_H1_BIASES = {"attention_bias": True, "mamba_proj_bias": True, "projectors_bias": True, "mlp_bias": True}
