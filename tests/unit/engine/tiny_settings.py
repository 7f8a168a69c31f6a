"""What makes a family's configuration tiny: its vocabulary, and settings that it names differently or needs."""

from __future__ import annotations

import string
from typing import Any

ALPHABET = string.ascii_lowercase + " .,!?<>"
EOS = 0
VOCAB_SIZE = len(ALPHABET) + 2  # "<eos>", "<unk>", then one token a character

MINISTRAL_3 = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "llama_4_scaling_beta": 0.3,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
LATENT = {
    "num_key_value_heads": 6,
    "kv_lora_rank": 16,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
DEEPSEEK = {**LATENT, "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# Settings that a family names differently, or cannot do without.
_DELTA = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "head_dim": 8,
    "initializer_range": 0.3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}
_MAMBA = {
    "num_hidden_layers": 3,
    "initializer_range": 0.2,
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
}
_GATED_EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
_ROUTED = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FAMILY_SETTINGS: dict[str, dict[str, Any]] = {
    "falcon": {"ffn_hidden_size": 80},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 300},
    "gptj": {"rotary_dim": 4, "n_inner": 80},
    "gpt_bigcode": {"n_inner": 80, "n_head": 6},
    "opt": {"ffn_dim": 80, "word_embed_proj_dim": 48},
    "ministral3": {"rope_parameters": MINISTRAL_3},
    "cwm": {"layer_types": ["full_attention"] * 2, "sliding_window": 300, "bos_token_id": 1},
    **{
        family: {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 300}
        for family in ("gemma2", "gemma3_text", "vaultgemma", "olmo3", "cohere2", "exaone4", "ministral")
    },
    # Two sizes of heads; the last two layers read the keys and values of the two before them.
    "gemma4_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 300,
        "global_head_dim": 16,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": VOCAB_SIZE,
    },
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 300,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": VOCAB_SIZE - 5,
        "laurel_rank": 6,
        "altup_num_inputs": 3,
        "activation_sparsity_pattern": [0.9, 0.0, 0.6, 0.0],
        "final_logit_softcapping": 30.0,
        "initializer_range": 0.2,
    },
    "mixtral": {"num_local_experts": 6},
    "qwen2_moe": _GATED_EXPERTS,
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 6},
    "granitemoeshared": {"num_local_experts": 6, "shared_intermediate_size": 40},
    "glm4_moe": {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "dots1": {
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "ernie4_5_moe": {"moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 24},
    "hunyuan_v1_moe": {"num_experts": 6, "moe_topk": 2},
    "minimax_m2": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "afmoe": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 300,
        **_ROUTED,
        "num_shared_experts": 1,
        "num_dense_layers": 1,
    },
    "exaone_moe": {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 300, **_ROUTED},
    "flex_olmo": {"num_experts": 6, "num_experts_per_tok": 2},
    "flint": {
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 300,
        **_GATED_EXPERTS,
        "mlp_only_layers": [],
    },
    "hy_v3": _ROUTED,
    "kolibri1": {
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 300,
        **_GATED_EXPERTS,
    },
    "mellum": {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 300, **_ROUTED},
    # With wide weights a near tie of experts decides more than rounding does.
    "phimoe": {"num_local_experts": 6, "initializer_range": 0.2},
    "solar_open": {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "deepseek_v2": {**DEEPSEEK, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "deepseek_v3": {**DEEPSEEK, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "glm4_moe_lite": DEEPSEEK,
    "axk1": {**DEEPSEEK, "n_group": 1, "topk_group": 1},
    "minicpm3": LATENT,
    "youtu": LATENT,
    "gpt_oss": {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 7},
    "lfm2": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_auto_adjust_ff_dim": False,
    },
    "lfm3": {
        "num_hidden_layers": 4,
        "layer_types": ["conv", "sliding_attention", "full_attention", "conv"],
        "sliding_window": 300,
    },
    "qwen3_5_text": _DELTA,
    "qwen3_next": {**_DELTA, **_GATED_EXPERTS},
    "qwen3_5_moe_text": {**_DELTA, **_GATED_EXPERTS},
    "lfm2_moe": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "num_dense_layers": 1,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
    },
    "granitemoehybrid": {
        **_MAMBA,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 80,
        "attention_multiplier": 0.3,
    },
    "olmo_hybrid": {**_DELTA, "rope_parameters": None, "initializer_range": 0.2},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**_MAMBA, "num_hidden_layers": 2, "mamba_d_ssm": 96},
    "dbrx": {
        "d_model": 48,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 3.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 6, "moe_top_k": 2},
    },
    "jamba": {
        "num_hidden_layers": 4,
        "initializer_range": 0.2,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "num_experts": 6,
        "mamba_d_state": 8,
        "mamba_dt_rank": 5,
    },
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "linear_attention", "full_attention", "mlp"],
        "initializer_range": 0.2,
        "mamba_num_heads": 6,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "ssm_state_size": 8,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 40,
    },
}


# Families whose heads are equal parts of the hidden size.
WITHOUT_HEAD_SETTINGS = ("falcon", "gpt_neo", "gptj", "gpt_bigcode", "opt", "biogpt")
