"""What llama.cpp's converter makes of tiny models of each family: settings, and tensors by ``gguf_converters``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tests.unit.engine.gguf_converters import (
    deepseek,
    ernie_moe,
    gemma4,
    gpt_oss,
    granitemoe,
    lfm2,
    minimax,
    nemotron,
    qwen3next,
    qwen35,
    unchanged,
    with_experts_apart,
    with_pairs_together,
    with_whole_norms,
)
from tests.unit.engine.model_files import write_gguf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.engine.gguf_converters import Tensors


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """One family.

    Attributes:
        model_type: Transformers' name.
        settings: Settings beside those that every file has, by their name after the architecture's.
        overrides: Of the tiny model's configuration.
        convert: See ``write_gguf``.
        leave_out: See ``write_gguf``.
        more: See ``write_gguf``.
    """

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    convert: Callable[[str, torch.Tensor, Any], Tensors] = unchanged
    leave_out: tuple[str, ...] = ()
    more: dict[str, torch.Tensor] = field(default_factory=dict)


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
_GEMMA4 = {
    "attention.sliding_window": 9,
    "attention.sliding_window_pattern": [True, False, True, False],
    "attention.key_length": 32,
    "attention.value_length": 32,
    "attention.key_length_swa": 16,
    "attention.value_length_swa": 16,
    "rope.dimension_count": 32,
    "rope.dimension_count_swa": 16,
    "rope.freq_base": 1000000.0,
    "rope.freq_base_swa": 500.0,
    "final_logit_softcapping": 7.0,
}
_GEMMA4_OVERRIDES = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "initializer_range": 0.2,
    "sliding_window": 9,
    "global_head_dim": 32,
    "vocab_size_per_layer_input": 260,
    "tie_word_embeddings": True,
    "final_logit_softcapping": 7.0,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
    },
}
_GEMMA4_FREQUENCIES = {"rope_freqs.weight": torch.tensor([1.0] * 4 + [1e30] * 12)}
_GEMMA3_ROPE = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}

# Widths of which Q8_0 has whole blocks.
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_theta": 10000.0,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
_YARN_SETTINGS = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
}
_HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
_LAYER_NORM = {"attention.layer_norm_epsilon": 1e-5}
_RMS = ("attention.layer_norm_rms_epsilon",)
_COUNTS = {"expert_count": 6, "expert_used_count": 2}
_GRANITE_SETTINGS = {"attention.scale": 0.3, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0}
_GRANITE = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
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
# Each key head has three value heads.
_DELTA = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 6,
    "ssm.inner_size": 96,
    "full_attention_interval": 4,
    "rope.dimension_count": 8,
}
_DELTA_OVERRIDES = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "head_dim": 16,
    "rope_parameters": _HALF,
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

CONVERSIONS = {
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
        settings=_GRANITE_SETTINGS,
        overrides=_GRANITE,
        convert=with_pairs_together,
    ),
    "olmo2": Conversion(model_type="olmo2"),
    "olmo2:olmo3": Conversion(
        model_type="olmo3",
        settings={
            **_YARN_SETTINGS,
            "attention.sliding_window": 9,
            "attention.sliding_window_pattern": [True, False],
        },
        overrides={
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": _YARN,
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
            **_YARN_SETTINGS,
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
        overrides={"attention_bias": True, "rope_parameters": _HALF},
    ),
    "nemotron": Conversion(
        model_type="nemotron",
        settings={**_LAYER_NORM, "rope.dimension_count": 8, "rope.scaling.type": "none"},
        overrides={"rope_parameters": _HALF},
        convert=nemotron,
    ),
    "stablelm": Conversion(
        model_type="stablelm",
        settings={**_LAYER_NORM, "rope.dimension_count": 8, "use_parallel_residual": False},
        overrides={"rope_parameters": _HALF, "use_qkv_bias": True, "use_parallel_residual": False},
        leave_out=_RMS,
    ),
    "arcee": Conversion(
        model_type="arcee",
        settings=_YARN_SETTINGS,
        overrides={"rope_parameters": _YARN},
        convert=with_pairs_together,
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
            **_YARN_SETTINGS,
            **_COUNTS,
            "attention.sliding_window": 7,
            "expert_feed_forward_length": 96,
        },
        overrides={"rope_parameters": {**_YARN, "truncate": False}},
        convert=gpt_oss,
    ),
    "granitemoe": Conversion(
        model_type="granitemoe",
        settings={**_GRANITE_SETTINGS, **_COUNTS},
        overrides=_GRANITE,
        convert=granitemoe,
    ),
    "granitemoe:shared": Conversion(
        model_type="granitemoeshared",
        settings={**_GRANITE_SETTINGS, **_COUNTS, "expert_shared_feed_forward_length": 64},
        overrides={**_GRANITE, "shared_intermediate_size": 64},
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
            "rope_parameters": _HALF,
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
    "qwen35": Conversion(
        model_type="qwen3_5_text",
        settings={**_DELTA, "rope.dimension_sections": [2, 1, 1, 0], "nextn_predict_layers": 1, "block_count": 5},
        overrides=_DELTA_OVERRIDES,
        convert=qwen35,
        more={"blk.4.nextn.eh_proj.weight": torch.ones(64, 128), "blk.4.attn_norm.weight": torch.ones(64)},
    ),
    "qwen35:one value head a key head": Conversion(
        model_type="qwen3_5_text",
        settings={**_DELTA, "ssm.group_count": 6},
        overrides={**_DELTA_OVERRIDES, "linear_num_key_heads": 6},
        convert=qwen35,
    ),
    "qwen35moe": Conversion(
        model_type="qwen3_5_moe_text",
        settings={**_DELTA, **_GATED_EXPERTS},
        overrides={**_DELTA_OVERRIDES, **_GATED_OVERRIDES},
        convert=qwen35,
        leave_out=("feed_forward_length",),
    ),
    "qwen3next": Conversion(
        model_type="qwen3_next",
        settings={**_DELTA, **_GATED_EXPERTS},
        overrides={**_DELTA_OVERRIDES, **_GATED_OVERRIDES},
        convert=qwen3next,
    ),
    "gemma4": Conversion(
        model_type="gemma4_text",
        settings={
            **_GEMMA4,
            "attention.shared_kv_layers": 2,
            "embedding_length_per_layer_input": 32,
            "feed_forward_length": [96, 96, 192, 192],
        },
        overrides={
            **_GEMMA4_OVERRIDES,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 32,
            "use_double_wide_mlp": True,
        },
        convert=gemma4,
        # The last layers read the keys of others, and checkpoints have some of their own all the same.
        more={
            **_GEMMA4_FREQUENCIES,
            "blk.2.attn_k.weight": torch.ones(32, 64),
            "blk.3.attn_k_norm.weight": torch.ones(32),
        },
    ),
    "gemma4:experts": Conversion(
        model_type="gemma4_text",
        settings={
            **_GEMMA4,
            **_COUNTS,
            "attention.shared_kv_layers": 0,
            "embedding_length_per_layer_input": 0,
            "expert_feed_forward_length": 32,
            "attention.head_count_kv": [2, 1, 2, 1],
        },
        overrides={
            **_GEMMA4_OVERRIDES,
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
        more=_GEMMA4_FREQUENCIES,
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
            **_YARN_SETTINGS,
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
            "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
        convert=deepseek,
    ),
    "qwen2vl": Conversion(model_type="qwen2", settings={"rope.dimension_sections": [4, 2, 2, 0]}),
    "qwen3vl": Conversion(
        model_type="qwen3", settings={"rope.dimension_sections": [4, 2, 2, 0], "n_deepstack_layers": 3}
    ),
    "minimax-m2": Conversion(
        model_type="minimax_m2",
        settings={**_COUNTS, "expert_feed_forward_length": 96, "expert_gating_func": 2, "rope.dimension_count": 8},
        overrides={"rope_parameters": _HALF},
        convert=minimax,
    ),
}


def write_converted(path: Path, architecture: str, **more: Any) -> Any:
    """A tiny model's file; returns the model.

    Args:
        path: Where to.
        architecture: A key of ``CONVERSIONS``.
        more: Further arguments of ``write_gguf``, whose settings and overrides count before the conversion's.
    """
    own = CONVERSIONS[architecture]
    settings = {**own.settings, **more.pop("settings", {})}
    leave_out = (*own.leave_out, *more.pop("leave_out", ()))
    return write_gguf(
        path,
        architecture.partition(":")[0],
        settings,
        model_type=own.model_type,
        convert=own.convert,
        leave_out=leave_out,
        more=more.pop("more", own.more),
        **{**_SIZES, **own.overrides, **more},
    )
