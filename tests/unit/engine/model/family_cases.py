"""The decoder's test cases: each family, with every setting that changes what it computes."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from transformers import CONFIG_MAPPING

from helix_jobs.engine.loading.pretrained import TRANSFORMERS_MAJOR
from helix_jobs.engine.model.families.registry import FAMILIES
from helix_jobs.engine.model.families.sparse_registry import SPARSE_FAMILIES
from tests.unit.engine.model.case_settings import (
    ALL_WINDOWS,
    BY_GROUP,
    BY_KIND,
    DEEPSEEK_YARN,
    DYNAMIC,
    FALCON_H1,
    FALCON_H1_BIASES,
    GEMMA_4_EXPERTS,
    GRANITE,
    LONGROPE,
    PHIMOE_LONGROPE,
    PROPORTIONAL,
    ROPES,
    WINDOW,
)
from tests.unit.engine.model.other_settings import EVERYTHING_ELSE
from tests.unit.engine.tiny_models import (
    ARCHITECTURES,
    VOCAB_SIZE,
    batched_reference_logits,
    reference_logits,
    roughen,
    tiny_model,
)
from tests.unit.engine.tiny_settings import MINISTRAL_3

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Case:
    architecture: str
    settings: dict[str, Any] = field(default_factory=dict)
    changes: bool = True  # what the family computes without the settings

    def __str__(self) -> str:
        names = [
            f"{k}={'+'.join(map(str, v.values())) if isinstance(v, dict) else v}" for k, v in self.settings.items()
        ]
        return f"{self.architecture}({','.join(names)})"

    def model(self) -> Any:
        """One model for all tests of the case; they copy it before they take it apart."""
        if self.architecture not in CONFIG_MAPPING or (
            FAMILIES[self.architecture].needs_transformers_5 and TRANSFORMERS_MAJOR < 5
        ):
            pytest.skip(f"{self.architecture} is not served with this transformers")
        return _model(self)

    def expected(self) -> list[torch.Tensor]:
        """transformers' logits for each of ``prompts()``."""
        return _expected(self)


@functools.cache
def plain_model(architecture: str) -> Any:
    """A family's model without any case's settings, made once for all its cases."""
    return Case(architecture).model()


@functools.cache
def plain_logits(architecture: str) -> torch.Tensor:
    """What it says of the fourth of ``prompts()``."""
    return reference_logits(plain_model(architecture), prompts()[3])


@functools.lru_cache(maxsize=4)
def _model(case: Case) -> Any:
    return roughen(tiny_model(case.architecture, seed=3, **case.settings))


@functools.lru_cache(maxsize=4)
def _expected(case: Case) -> list[torch.Tensor]:
    return batched_reference_logits(case.model(), prompts())


# Without experts: in bfloat16 a near tie of experts would hide how attention rounds.
DENSE_DEEPSEEK_V2 = Case("deepseek_v2", {"first_k_dense_replace": 2})
CASES = [
    *(Case(family, settings) for family, settings in EVERYTHING_ELSE.items()),
    *(Case(architecture, changes=False) for architecture in ARCHITECTURES),
    *(Case(architecture, {"tie_word_embeddings": True}) for architecture in ARCHITECTURES),
    *(Case(architecture, {"head_dim": 16}) for architecture in ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3")),
    *(Case(architecture, {"attention_bias": True}) for architecture in ("llama", "qwen3", "gemma")),
    *(Case("llama", {"num_key_value_heads": heads}) for heads in (1, 6)),
    Case("llama", {"mlp_bias": True}),
    Case("llama", {"hidden_act": "gelu"}),
    Case("llama", {"pretraining_tp": 2}, changes=False),
    Case("llama", {"rms_norm_eps": 0.1}),
    *(Case("llama", {"rope_scaling": rope}) for rope in ROPES.values()),
    Case("llama", {"rope_theta": 500.0}),
    *(
        Case(architecture, {"rope_scaling": DYNAMIC}, changes=False)
        for architecture in ("llama", "internlm3", "qwen2", "minicpm3", "hunyuan_v1_dense")
    ),
    *(Case("qwen2", {"rope_scaling": rope}) for rope in ROPES.values()),
    Case("gemma", {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "relu"}, changes=False),
    Case("phi3", {"partial_rotary_factor": 0.5}),
    Case("phi3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64}),
    Case("phi3", {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attention_dropout": 0.5}, changes=False),
    Case("gpt2", {"scale_attn_weights": False}),
    Case("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    Case("gpt2", {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True}),
    Case("gpt2", {"n_inner": 72}),
    Case("gpt2", {"layer_norm_epsilon": 0.1}),
    *(Case("gpt2", {"activation_function": name}) for name in ("relu", "gelu")),
    *(Case("gpt2", {"activation_function": name}, changes=False) for name in ("gelu_fast", "gelu_pytorch_tanh")),
    Case("lfm2", {"conv_L_cache": 4}),
    Case("lfm2", {"conv_bias": True}),
    Case("lfm2", {"norm_eps": 0.1}),
    Case("lfm2", {"layer_types": ["full_attention", "conv", "conv"]}),
    Case("lfm2", {"block_auto_adjust_ff_dim": True, "block_multiple_of": 16, "block_ffn_dim_multiplier": 0.9}),
    Case("lfm3", changes=False),
    Case("lfm3", {"sliding_window": 7}),
    Case("lfm3", {"use_sandwich_norm": False, "conv_L_cache": 4}),
    Case("lfm3", {"use_attention_gate": False}),
    Case("lfm3", {"conv_bias": True, "attention_bias": True}),
    Case("lfm3", {"rope_parameters": BY_KIND}),
    Case("qwen3_5_text", {"linear_conv_kernel_dim": 3}),
    Case("qwen3_5_text", {"linear_num_value_heads": 2, "initializer_range": 0.2}),
    Case("qwen3_5_text", {"linear_num_value_heads": 6, "linear_num_key_heads": 6, "linear_value_head_dim": 16}),
    Case("qwen3_5_text", {"attention_bias": True}),
    Case("qwen3_5_text", {"rms_norm_eps": 0.1}),
    Case("qwen3_5_text", {"hidden_act": "relu"}),
    Case("qwen3_5_text", {"layer_types": ["full_attention", "linear_attention", "linear_attention"]}),
    Case(
        "qwen3_5_text", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0}}
    ),
    Case("granitemoehybrid", {"mamba_d_conv": 3}),
    Case("granitemoehybrid", {"mamba_n_groups": 1}),
    Case("granitemoehybrid", {"mamba_n_heads": 3, "mamba_d_head": 32, "mamba_n_groups": 1}),
    *(Case("granitemoehybrid", {key: True}) for key in ("mamba_proj_bias", "attention_bias")),
    Case("granitemoehybrid", {"mamba_conv_bias": False}),
    Case("granitemoehybrid", {"position_embedding_type": "rope"}),
    Case("granitemoehybrid", {"rms_norm_eps": 0.1}),
    Case("granitemoehybrid", {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.5}),
    Case("granitemoehybrid", {"layer_types": ["full_attention", "linear_attention", "linear_attention"]}),
    Case("granitemoehybrid", {"num_local_experts": 6, "num_experts_per_tok": 3}),
    Case("olmo_hybrid", changes=False),
    Case("olmo_hybrid", {"linear_allow_neg_eigval": False}),
    Case("olmo_hybrid", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
    Case("olmo_hybrid", {"attention_bias": True, "linear_num_value_heads": 2, "linear_conv_kernel_dim": 3}),
    Case("bamba", changes=False),
    Case("bamba", {"mamba_proj_bias": True, "mlp_bias": True, "attention_bias": True}),
    Case("bamba", {"hidden_act": "relu"}),
    Case("bamba", {"attn_layer_indices": [0, 2]}),
    Case("falcon_h1", changes=False),
    Case("falcon_h1", {"mamba_rms_norm": True}),
    Case("falcon_h1", {"mamba_rms_norm": True, "mamba_norm_before_gate": False}),
    Case("falcon_h1", FALCON_H1),
    Case("falcon_h1", {**FALCON_H1, **FALCON_H1_BIASES}),
    Case("nemotron_h", changes=False),
    Case("nemotron_h", {"layers_block_type": ["mlp", "full_attention", "mlp", "moe", "linear_attention"]}),
    Case("nemotron_h", {"n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5}),
    Case("nemotron_h", {"norm_topk_prob": False}),
    Case("nemotron_h", {"use_bias": True, "mlp_bias": True, "use_conv_bias": False}),
    Case("nemotron_h", {"mlp_hidden_act": "gelu", "mamba_hidden_act": "relu"}),
    Case("nemotron_h", {"layer_norm_epsilon": 0.1, "conv_kernel": 3}),
    Case("gpt_neox", {"use_parallel_residual": False}),
    Case("gpt_neox", {"attention_bias": False}),
    *(Case("gpt_neox", {"rotary_pct": share}) for share in (0.5, 1.0)),
    Case("gpt_neox", {"rotary_pct": 1.0, "rotary_emb_base": 500}),
    *(Case("gpt_neox", {"hidden_act": name}) for name in ("gelu_new", "gelu_fast", "relu")),
    # Llama under another name, or with other biases.
    *(Case(family, changes=False) for family in ("internlm3", "iquestcoder", "seed_oss")),
    Case("seed_oss", {"attention_bias": False}),
    *(Case("seed_oss", {name: True}) for name in ("attention_out_bias", "mlp_bias")),
    Case("arcee", changes=False),
    *(Case("arcee", {name: True}) for name in ("attention_bias", "mlp_bias")),
    Case("nemotron", changes=False),
    Case("nemotron", {"partial_rotary_factor": 1.0}),
    Case("jais2", changes=False),
    Case("apertus", changes=False),
    Case("apertus", {"hidden_act": "relu2"}),
    Case("ernie4_5", changes=False),
    Case("ernie4_5", {"use_bias": True}),
    Case("helium", changes=False),
    Case("glm", changes=False),
    *(Case("glm", {"partial_rotary_factor": share}) for share in (0.25, 1.0)),
    Case("glm4", changes=False),
    Case("gptj", changes=False),
    Case("gptj", {"rotary_dim": 8}),
    Case("phi", changes=False),
    Case("phi", {"qk_layernorm": True}),
    Case("stablelm", changes=False),
    Case("stablelm", {"use_parallel_residual": True}),
    Case("stablelm", {"qk_layernorm": True}),
    Case("stablelm", {"use_qkv_bias": True}),
    Case("falcon", changes=False),
    Case("falcon", {"parallel_attn": False}),
    Case("falcon", {"multi_query": False}),
    Case("falcon", {"bias": True}),
    Case("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    Case("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    Case("gpt_neo", changes=False),
    Case("gpt_neo", {"window_size": 7}),
    Case("gpt_neo", {"attention_types": [[["local"], 2]], "window_size": 7}),
    Case("gpt_bigcode", changes=False),
    Case("gpt_bigcode", {"multi_query": False}),
    Case("gpt_bigcode", {"scale_attn_weights": False}),
    Case("biogpt", changes=False),
    Case("biogpt", {"scale_embedding": False}),
    Case("biogpt", {"hidden_act": "relu"}),
    Case("opt", changes=False),
    Case("opt", {"enable_bias": False}),
    Case("olmo", changes=False),
    Case("olmo", {"clip_qkv": 1.5}),
    Case("granite", changes=False),
    *(Case("granite", {name: value}) for name, value in GRANITE.items()),
    Case("granite", GRANITE),
    Case("hyperclovax", changes=False),
    Case("hyperclovax", GRANITE),
    Case("hyperclovax", {"use_post_norm": False}),
    Case("cohere", changes=False),
    Case("cohere", {"use_qk_norm": True}),
    Case("cohere", {"logit_scale": 0.3}),
    Case("olmo2", changes=False),
    Case("hunyuan_v1_dense", changes=False),
    Case("hunyuan_v1_dense", {"rope_scaling": {"rope_type": "dynamic", "alpha": 100.0, "factor": 1.0}}),
    Case("nanochat", changes=False),
    Case("nanochat", {"final_logit_softcapping": None}),
    # Attention by layer.
    *(Case(family, {"sliding_window": 7}) for family in ("mistral", "phi3")),
    *(Case(family, {**WINDOW, "use_sliding_window": True}) for family in ("qwen2", "qwen3")),
    Case("qwen2", {**ALL_WINDOWS, "use_sliding_window": True}),
    Case("starcoder2", changes=False),
    Case("starcoder2", {"sliding_window": 7}),
    Case("starcoder2", {"use_bias": False}),
    *(Case(family, changes=False) for family in ("ministral", "smollm3", "exaone4", "cohere2", "olmo3", "cwm")),
    *(Case(family, WINDOW) for family in ("ministral", "cwm", "olmo3", "exaone4", "cohere2")),
    Case("smollm3", {"no_rope_layers": [1, 0]}),
    Case("smollm3", {**WINDOW, "use_sliding_window": True}),
    Case("olmo3", {"rope_parameters": BY_KIND, **WINDOW}),
    Case("ministral3", changes=False),
    Case("ministral3", {"sliding_window": 7}),
    Case("ministral3", {"rope_parameters": {**MINISTRAL_3, "llama_4_scaling_beta": 1.5}}),
    *(Case(family, changes=False) for family in ("gemma2", "gemma3_text", "vaultgemma")),
    *(Case(family, WINDOW) for family in ("gemma2", "gemma3_text", "vaultgemma")),
    *(Case("gemma2", {name: 2.0}) for name in ("attn_logit_softcapping", "final_logit_softcapping")),
    *(Case("gemma2", {name: None}) for name in ("attn_logit_softcapping", "final_logit_softcapping")),
    *(Case(family, {"query_pre_attn_scalar": 5}) for family in ("gemma2", "gemma3_text")),
    Case("gemma3_text", {"attn_logit_softcapping": 2.0}, changes=False),
    Case("gemma3_text", {"final_logit_softcapping": 2.0}),
    Case("gemma3_text", {"rope_parameters": BY_KIND}),
    Case("vaultgemma", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    Case("gemma3n_text", changes=False),
    Case("gemma3n_text", {"sliding_window": 7}),
    Case("gemma3n_text", {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCAB_SIZE}),
    Case("gemma3n_text", {"altup_num_inputs": 2, "altup_active_idx": 1}),
    Case("gemma3n_text", {"altup_correct_scale": False}),
    Case("gemma3n_text", {"activation_sparsity_pattern": [0.0, 0.95, 0.0, 0.5]}),
    Case("gemma3n_text", {"intermediate_size": [80, 48, 80, 72]}),
    Case("gemma3n_text", {"final_logit_softcapping": 2.0}),
    Case("gemma3n_text", {"rope_parameters": BY_KIND}),
    Case("gemma4_text", changes=False),
    Case("gemma4_text", {"sliding_window": 7}),
    Case("gemma4_text", {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}),
    Case("gemma4_text", {"num_kv_shared_layers": 1}),
    Case("gemma4_text", {"use_double_wide_mlp": True}),
    Case("gemma4_text", {"attention_k_eq_v": True, "num_global_key_value_heads": 1}),
    Case("gemma4_text", {"attention_bias": True}),
    Case("gemma4_text", {"final_logit_softcapping": 2.0}),
    Case("gemma4_text", {"rope_parameters": PROPORTIONAL}),
    Case("gemma4_text", GEMMA_4_EXPERTS),
    # Experts.
    Case("mixtral", changes=False),
    *(Case("mixtral", {"num_experts_per_tok": count}) for count in (1, 3)),
    Case("mixtral", {"sliding_window": 7}),
    *(Case(family, changes=False) for family in ("qwen2_moe", "qwen3_moe")),
    *(Case(family, {"norm_topk_prob": True}) for family in ("qwen2_moe", "qwen3_moe")),
    *(Case(family, {"mlp_only_layers": [0]}) for family in ("qwen2_moe", "qwen3_moe")),
    Case("qwen2_moe", {"decoder_sparse_step": 2}),
    Case("qwen2_moe", {"qkv_bias": False}),
    Case("qwen2_moe", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}),
    Case("qwen3_moe", {"use_sliding_window": True, "sliding_window": 7}),
    Case("qwen3_next", changes=False),
    Case("qwen3_next", {"norm_topk_prob": False}),
    Case("qwen3_next", {"mlp_only_layers": [1], "decoder_sparse_step": 2}),
    Case("qwen3_next", {"linear_num_value_heads": 2, "initializer_range": 0.2}),
    Case("qwen3_5_moe_text", changes=False),
    Case("qwen3_5_moe_text", {"hidden_act": "relu"}),
    Case("lfm2_moe", changes=False),
    Case("lfm2_moe", {"use_expert_bias": False}),
    Case("lfm2_moe", {"norm_topk_prob": False, "routed_scaling_factor": 1.7}),
    Case("lfm2_moe", {"num_dense_layers": 2}),
    Case("olmoe", changes=False),
    Case("olmoe", {"norm_topk_prob": True}),
    Case("olmoe", {"clip_qkv": 0.5}),
    *(Case(family, changes=False) for family in ("granitemoe", "granitemoeshared")),
    *(Case(family, GRANITE) for family in ("granitemoe", "granitemoeshared")),
    Case("granitemoeshared", {"shared_intermediate_size": 0}),
    *(Case(family, changes=False) for family in ("glm4_moe", "dots1")),
    *(Case(family, {"n_group": 2, "topk_group": 1}) for family in ("glm4_moe", "dots1")),
    *(Case("glm4_moe", {name: True}) for name in ("use_qk_norm", "attention_bias")),
    Case("glm4_moe", {"norm_topk_prob": False}),
    Case("glm4_moe", {"first_k_dense_replace": 0}),
    Case("glm4_moe", {"routed_scaling_factor": 1.7}),
    Case("dots1", {"norm_topk_prob": True}),
    Case("dots1", {"sliding_window": 7, "max_window_layers": 1}),
    Case("ernie4_5_moe", changes=False),
    Case("ernie4_5_moe", {"moe_num_shared_experts": 0}),
    Case("ernie4_5_moe", {"moe_norm_min": 0.9}),
    Case("ernie4_5_moe", {"moe_layer_start_index": 0, "moe_layer_end_index": 0}),
    Case("ernie4_5_moe", {"moe_layer_start_index": 0, "moe_layer_interval": 2}, changes=False),
    Case("hunyuan_v1_moe", changes=False),
    Case("hunyuan_v1_moe", {"moe_topk": [1, 3]}),
    Case("hunyuan_v1_moe", {"rope_scaling": {"rope_type": "dynamic", "alpha": 100.0, "factor": 1.0}}),
    Case("minimax_m2", changes=False),
    Case("minimax_m2", {"rotary_dim": 4}),
    Case("gpt_oss", changes=False),
    Case("gpt_oss", {"layer_types": ["full_attention", "full_attention"]}),
    Case("gpt_oss", {"attention_bias": False}),
    Case("gpt_oss", {"swiglu_limit": 0.5}),
    Case("gpt_oss", {"swiglu_alpha": 1.0}),
    Case("gpt_oss", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    *(
        Case(family, changes=False)
        for family in (
            "afmoe",
            "exaone_moe",
            "flex_olmo",
            "flint",
            "hy_v3",
            "kolibri1",
            "mellum",
            "phimoe",
            "solar_open",
        )
    ),
    *(Case(family, WINDOW) for family in ("afmoe", "exaone_moe", "flint", "kolibri1", "mellum")),
    Case("afmoe", {"mup_enabled": True}),
    Case("afmoe", {"num_dense_layers": 0, "route_scale": 1.7, "num_shared_experts": 2}),
    Case("exaone_moe", {"n_group": 2, "topk_group": 1, "norm_topk_prob": False}),
    Case("exaone_moe", {"mlp_layer_types": ["sparse", "dense"], "routed_scaling_factor": 1.7}),
    Case("flex_olmo", {"norm_topk_prob": True}, changes=False),  # a norm follows, and takes the factor out
    Case("flint", {"norm_topk_prob": False, "mlp_only_layers": [0]}),
    Case("hy_v3", {"router_scaling_factor": 1.3, "num_shared_experts": 2}),
    Case("hy_v3", {"mlp_layer_types": ["sparse", "sparse"]}),
    Case("kolibri1", {"norm_topk_prob": True}),
    Case("mellum", {"norm_topk_prob": False, "mlp_layer_types": ["dense", "sparse"]}),
    Case("mellum", {"rope_parameters": BY_KIND}),
    Case("phimoe", {"router_jitter_noise": 0.3}),
    Case("phimoe", {"sliding_window": 7}),
    Case("phimoe", {"lm_head_bias": True, "attention_bias": True}),
    Case("phimoe", {"rope_scaling": PHIMOE_LONGROPE, "original_max_position_embeddings": 64}),
    Case("solar_open", {"n_group": 2, "topk_group": 1}),
    Case("solar_open", {"norm_topk_prob": False, "routed_scaling_factor": 1.7}),
    # Latent attention.
    *(Case(family, changes=False) for family in ("minicpm3", "youtu")),
    *(Case("minicpm3", {name: value}) for name, value in (("scale_emb", 3), ("scale_depth", 0.5))),
    Case("minicpm3", {"dim_model_base": 64}),
    Case("minicpm3", {"q_lora_rank": None}),
    Case("minicpm3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64}),
    *(Case("minicpm3", {name: True}) for name in ("attention_bias", "mlp_bias")),
    Case("youtu", {"rope_interleave": False}),
    Case("youtu", {"rope_parameters": DEEPSEEK_YARN}),
    Case("youtu", {"rms_norm_eps": 0.1}),
    *(Case(family, changes=False) for family in ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")),
    Case("deepseek_v2", BY_GROUP),
    Case("deepseek_v2", {"routed_scaling_factor": 1.7}),
    Case("deepseek_v2", {"q_lora_rank": None, "rope_parameters": DEEPSEEK_YARN}),
    Case("deepseek_v2", {"first_k_dense_replace": 0}),
    DENSE_DEEPSEEK_V2,
    *(Case("deepseek_v2", {name: True}) for name in ("attention_bias", "mlp_bias")),
    Case("deepseek_v3", {"n_group": 2, "topk_group": 1}),
    Case("deepseek_v3", {"norm_topk_prob": False}),
    Case("deepseek_v3", {"rope_interleave": False, "attention_bias": True}),
    Case("axk1", changes=False),
    Case("axk1", {"n_group": 2, "topk_group": 1, "norm_topk_prob": False}),
    Case("axk1", {"mlp_layer_types": ["sparse", "sparse"], "routed_scaling_factor": 1.7}),
    Case("axk1", {"rope_interleave": False, "attention_bias": True}),
    Case("glm4_moe_lite", {"mlp_layer_types": ["sparse", "sparse"]}),
    Case("glm4_moe_lite", {"rope_interleave": False}),
]
# Each family once, for tests of what does not depend on its settings.
PLAIN_CASES = [case for case in CASES if not case.settings]
_SPARSE = {family.model_type for family in SPARSE_FAMILIES}
# Of families that are described by their differences from these, each once. Rounding can change the choice of experts,
# so models with experts are compared position by position.
ROUNDED_CASES = [
    case
    for case in CASES
    if case.architecture in ARCHITECTURES
    or case is DENSE_DEEPSEEK_V2
    or not (case.settings or case.architecture in _SPARSE)
]


def prompts() -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(VOCAB_SIZE) for _ in range(length)] for length in (1, 9, 33, 60, 4)]


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())
