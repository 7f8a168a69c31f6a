"""What llama.cpp's converter makes of tiny models with Mamba-2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tests.unit.engine.gguf_conversion_base import GRANITE, GRANITE_SETTINGS, Conversion
from tests.unit.engine.gguf_converters import granitemoe, with_pairs_together

if TYPE_CHECKING:
    from tests.unit.engine.gguf_converters import Tensors


def _mamba(name: str, weight: torch.Tensor, num_groups: int) -> Tensors:
    """Numbers of a head in rows of their own, a norm group by group."""
    part = name.rpartition(".mixer." if ".mixer." in name else ".mamba.")[2]
    if part == "A_log":
        yield name, -weight.exp().view(-1, 1)
    elif part == "D":
        yield name, weight.view(-1, 1)
    elif part == "dt_bias":
        yield name.replace("dt_bias", "dt_proj.bias"), weight
    elif part == "conv1d.weight":
        yield name, weight.squeeze(1)
    elif part == "norm.weight" and ".layers." in name:
        yield name, weight.view(num_groups, -1)
    else:
        yield name, weight


def granitehybrid(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    if ".mamba." in name:
        yield from _mamba(name, weight, config.mamba_n_groups)
        return
    for stored, one in granitemoe(name, weight, config):
        if config.num_local_experts:
            yield stored, one
        elif stored.endswith("output_linear.weight"):
            yield f"blk.{name.split('.')[2]}.ffn_down.weight", one
        else:
            yield stored.replace("_shexp", ""), one


def falcon_h1(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    """Factors are multiplied into the weights."""
    gate, down = config.mlp_multipliers
    states = config.mamba_n_groups * config.mamba_d_state
    counts = (config.mamba_d_ssm, config.mamba_d_ssm, states, states, config.mamba_n_heads)
    of_inner = torch.cat(
        [torch.full((count, 1), factor) for count, factor in zip(counts, config.ssm_multipliers, strict=True)]
    )
    factors: dict[str, Any] = {
        "down_proj": down,
        "gate_proj": gate,
        "k_proj": config.key_multiplier * config.attention_in_multiplier,
        "q_proj": config.attention_in_multiplier,
        "v_proj": config.attention_in_multiplier,
        "o_proj": config.attention_out_multiplier,
        "out_proj": config.ssm_out_multiplier,
        "in_proj": config.ssm_in_multiplier * of_inner,
        "lm_head": config.lm_head_multiplier,
        "embed_tokens": config.embedding_multiplier,
    }
    weight = weight * next((factor for part, factor in factors.items() if part in name), 1.0)
    yield from _mamba(name, weight, config.mamba_n_groups)


def nemotron_h(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    layer = f"blk.{name.split('.')[2]}" if ".layers." in name else ""
    name = name.replace("model.", "backbone.", 1)
    if ".experts." in name:
        yield f"{layer}.ffn_{'up' if 'up_proj' in name else 'down'}_exps.weight", weight
    elif name.endswith("e_score_correction_bias"):
        yield f"{layer}.exp_probs_b.bias", weight
    elif ".mixer." not in name:
        yield name, weight
    else:
        for stored, one in with_pairs_together(name, weight, config):
            yield from _mamba(stored, one, config.n_groups)


_SSM = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 8,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 8,
    "ssm.inner_size": 128,
}
_SIZES = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 8}
_GRANITE_SETTINGS = {
    **GRANITE_SETTINGS,
    **_SSM,
    "attention.head_count_kv": [0, 2, 0],
    "rope.scaling.finetuned": False,
}
_COUNTS = {"expert_count": 6, "expert_used_count": 2}
_FACTORS = {
    "attention_in_multiplier": 2.0,
    "key_multiplier": 0.25,
    "attention_out_multiplier": 0.5,
    "ssm_in_multiplier": 0.5,
    "ssm_out_multiplier": 2.0,
    "ssm_multipliers": [0.5, 2.0, 4.0, 0.25, 2.0],
    "mlp_multipliers": [2.0, 0.5],
    "embedding_multiplier": 4.0,
    "lm_head_multiplier": 0.125,
}
_KINDS = ["linear_attention", "mlp", "linear_attention", "full_attention", "mlp"]
_NEMOTRON = {**_SSM, "attention.value_length": 16, "rope.scaling.finetuned": False}
_NEMOTRON_SIZES = {"mamba_num_heads": 8, "mamba_head_dim": 16}

MAMBA_CONVERSIONS = {
    "granitehybrid": Conversion(
        model_type="granitemoehybrid",
        settings={**_GRANITE_SETTINGS, "expert_count": 0, "expert_used_count": 0},
        overrides={**GRANITE, **_SIZES, "shared_intermediate_size": 96},
        convert=granitehybrid,
    ),
    "granitehybrid:experts": Conversion(
        model_type="granitemoehybrid",
        settings={**_GRANITE_SETTINGS, **_COUNTS, "expert_shared_feed_forward_length": 64},
        overrides={
            **GRANITE,
            **_SIZES,
            "shared_intermediate_size": 64,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
        },
        convert=granitehybrid,
    ),
    "falcon-h1": Conversion(
        model_type="falcon_h1",
        settings={**_SSM, "attention.value_length": 16},
        overrides={**_SIZES, **_FACTORS, "mamba_d_ssm": 128},
        convert=falcon_h1,
    ),
    "falcon-h1:norm": Conversion(
        model_type="falcon_h1",
        settings={**_SSM, "attention.value_length": 16},
        overrides={
            **_SIZES,
            **_FACTORS,
            "mamba_d_ssm": 128,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
        },
        convert=falcon_h1,
    ),
    "nemotron_h": Conversion(
        model_type="nemotron_h",
        settings={
            **_NEMOTRON,
            "attention.head_count_kv": [0, 0, 0, 2, 0],
            "feed_forward_length": [0, 96, 0, 0, 96],
        },
        overrides={**_NEMOTRON_SIZES, "layers_block_type": _KINDS},
        convert=nemotron_h,
    ),
    "nemotron_h_moe": Conversion(
        model_type="nemotron_h",
        settings={
            **_NEMOTRON,
            **_COUNTS,
            "block_count": 6,
            "nextn_predict_layers": 1,
            "attention.head_count_kv": [0, 0, 0, 2, 0, 2],
            "feed_forward_length": [0, 32, 0, 0, 32, 32],
            "expert_feed_forward_length": 32,
            "expert_shared_feed_forward_length": 64,
            "expert_shared_count": 1,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
            "expert_group_count": 1,
        },
        overrides={
            **_NEMOTRON_SIZES,
            "layers_block_type": [kind.replace("mlp", "moe") for kind in _KINDS],
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 64,
            "routed_scaling_factor": 2.5,
        },
        convert=nemotron_h,
        more={"blk.5.nextn.eh_proj.weight": torch.ones(64, 128), "blk.5.attn_norm.weight": torch.ones(64)},
    ),
}
