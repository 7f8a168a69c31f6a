"""What a configuration can set beyond its family's features: biases, norms' epsilon, activations, sizes."""

from __future__ import annotations

from typing import Any

# For each family the settings of its modules that no other case varies, all at once: biases, norms' epsilon, the
# activation, the experts of a token.
_BIAS = {"attention_bias": True}
_BIASES = {**_BIAS, "mlp_bias": True}
_RMS = {"rms_norm_eps": 0.1, "hidden_act": "relu"}
_LAYER = {"layer_norm_eps": 0.1, "hidden_act": "relu"}
_GEMMA = {"rms_norm_eps": 0.1, "hidden_activation": "relu", **_BIAS}
_SPARSE_RMS = {**_RMS, "num_experts_per_tok": 3}
_PARTIAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}
EVERYTHING_ELSE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("mistral", "ministral", "ministral3", "qwen2", "qwen3", "phi3", "exaone4", "arcee"), _RMS),
    **dict.fromkeys(("ernie4_5", "seed_oss"), _RMS),
    **dict.fromkeys(("smollm3", "granite", "hyperclovax", "helium", "internlm3", "iquestcoder"), _RMS | _BIASES),
    **dict.fromkeys(("olmo2", "olmo3", "hunyuan_v1_dense", "nanochat"), _RMS | _BIAS),
    "olmo": {"hidden_act": "relu", **_BIAS},
    "glm": {**_RMS, **_BIAS},
    "glm4": {**_RMS, **_BIAS, **_PARTIAL},
    "apertus": {"rms_norm_eps": 0.1, **_BIAS},
    "cwm": {**_RMS, "mlp_bias": True},
    "gemma": {"rms_norm_eps": 0.1},
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    "gemma3n_text": {**_GEMMA, "laurel_rank": 8, "hidden_size_per_layer_input": 6},
    "vaultgemma": {**_GEMMA, "query_pre_attn_scalar": 5},
    "phi": {**_LAYER, **_PARTIAL},
    "stablelm": {**_LAYER, **_PARTIAL},
    "gptj": {"layer_norm_epsilon": 0.1, "activation_function": "relu"},
    "gpt_neo": {"layer_norm_epsilon": 0.1, "activation_function": "relu", "intermediate_size": 72},
    "gpt_neox": {"layer_norm_eps": 0.1},
    "gpt_bigcode": {"layer_norm_epsilon": 0.1, "activation_function": "relu"},
    "starcoder2": {"norm_epsilon": 0.1, "hidden_act": "relu"},
    "opt": {"activation_function": "gelu"},
    "falcon": {"layer_norm_epsilon": 0.1, "activation": "relu"},
    "cohere": {**_LAYER, **_BIAS},
    "cohere2": {**_LAYER, **_BIAS, "logit_scale": 0.3},
    "nemotron": {"norm_eps": 0.1, "hidden_act": "relu", **_BIASES},
    "jais2": {**_LAYER, "attention_bias": False, "mlp_bias": False},
    "granitemoehybrid": {"attention_multiplier": 0.1, "hidden_act": "relu", "mamba_d_state": 4},
    "mixtral": _RMS,
    "minimax_m2": _SPARSE_RMS,
    "qwen2_moe": _SPARSE_RMS,
    "qwen3_moe": {**_SPARSE_RMS, **_BIAS, "decoder_sparse_step": 2},
    **dict.fromkeys(("olmoe", "granitemoe", "granitemoeshared"), _SPARSE_RMS | _BIAS),
    "glm4_moe": {**_SPARSE_RMS, "n_shared_experts": 2},
    "dots1": {**_SPARSE_RMS, **_BIAS, "n_shared_experts": 2, "first_k_dense_replace": 0, "routed_scaling_factor": 1.7},
    "ernie4_5_moe": {**_RMS, "moe_k": 3, "use_bias": True},
    "hunyuan_v1_moe": {**_RMS, **_BIAS},
    "afmoe": {**_SPARSE_RMS, **_BIAS},
    "exaone_moe": {**_SPARSE_RMS, "num_shared_experts": 2},
    "flex_olmo": {**_SPARSE_RMS, **_BIAS},
    "flint": {**_SPARSE_RMS, **_BIAS},
    "hy_v3": {**_SPARSE_RMS, **_BIAS},
    "kolibri1": _SPARSE_RMS,
    "mellum": {**_SPARSE_RMS, **_BIAS},
    "phimoe": _RMS,
    "solar_open": {**_SPARSE_RMS, **_BIAS, "n_shared_experts": 2},
    "gpt_oss": {"rms_norm_eps": 0.1, "num_experts_per_tok": 3, "sliding_window": 5},
}
