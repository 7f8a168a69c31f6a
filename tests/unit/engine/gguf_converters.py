"""What llama.cpp's converter makes of the weights of families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    Tensors = Iterator[tuple[str, torch.Tensor]]


def unchanged(name: str, weight: torch.Tensor, _config: Any) -> Tensors:
    yield name, weight


def with_whole_norms(name: str, weight: torch.Tensor, _config: Any) -> Tensors:
    yield name, weight + 1 if name.endswith("norm.weight") else weight


def with_pairs_together(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    """Of queries and keys the two numbers of a rotated pair side by side."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((count for part, count in heads.items() if part in name), None)
    if count is not None:
        weight = weight.view(count, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
    yield name, weight


def with_experts_apart(name: str, weight: torch.Tensor, _config: Any) -> Tensors:
    """Experts' gates and up projections as two tensors, and a choice's correction as a bias."""
    if name.endswith(".experts.gate_up_proj"):
        gate, up = weight.chunk(2, dim=1)
        yield name.replace("gate_up", "gate") + ".weight", gate
        yield name.replace("gate_up", "up") + ".weight", up
    elif name.endswith(".experts.down_proj"):
        yield f"{name}.weight", weight
    else:
        yield name.replace("e_score_correction_bias", "e_score_correction.bias"), weight


def gpt_oss(name: str, weight: torch.Tensor, _config: Any) -> Tensors:
    """Gates and up projections alternate in the columns of one parameter."""
    bias = name.endswith("_bias")
    kind = "bias" if bias else "weight"
    stored = name.removesuffix("_bias")
    if ".experts." in name and not bias:
        weight = weight.transpose(1, 2)
    if ".experts.gate_up_proj" in name:
        yield f"{stored.replace('gate_up', 'gate')}.{kind}", weight[:, ::2]
        yield f"{stored.replace('gate_up', 'up')}.{kind}", weight[:, 1::2]
    elif ".experts." in name:
        yield f"{stored}.{kind}", weight
    else:
        yield f"{name}.weight" if name.endswith("sinks") else name, weight


def granitemoe(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    layer = f"blk.{name.split('.')[2]}" if ".layers." in name else ""
    if name.endswith(("experts.gate_up_proj", "shared_mlp.input_linear.weight")):
        suffix = "exps" if "experts" in name else "shexp"
        for part, half in zip(("gate", "up"), weight.chunk(2, dim=-2), strict=True):
            yield f"{layer}.ffn_{part}_{suffix}.weight", half
    elif name.endswith("experts.down_proj"):
        yield f"{layer}.ffn_down_exps.weight", weight
    else:
        yield from with_pairs_together(name.replace("router.weight", "router.layer.weight"), weight, config)


def nemotron(name: str, weight: torch.Tensor, _config: Any) -> Tensors:
    """Of a layer norm the weight, and not the bias."""
    yield name, weight + 1 if name.endswith("norm.weight") else weight


def ernie_moe(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    yield from with_experts_apart(name.replace(".gate.moe_statics.", ".moe_statics."), weight, config)


def lfm2(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    own = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    for stored, one in with_experts_apart(name, weight, config):
        part = stored.removesuffix(".weight").rpartition(".")[2]
        if ".experts." in stored:
            yield stored.removeprefix("model.").replace(part, own[part]), one
        elif "conv.conv" in stored:
            yield stored, one.squeeze(1)
        else:
            yield stored.replace(".expert_bias", ".expert_bias.bias"), one


def _tiled(weight: torch.Tensor, dim: int, count: int, config: Any) -> torch.Tensor:
    """The last ``count`` numbers along a dimension, of value heads, in llama.cpp's order."""
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    first, last = weight.split((weight.shape[dim] - count, count), dim)
    shape = (*last.shape[:dim], keys, values // keys, count // values, *last.shape[dim + 1 :])
    return torch.cat((first, last.reshape(shape).transpose(dim, dim + 1).reshape(last.shape)), dim)


def qwen35(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    heads = config.linear_num_value_heads
    width = heads * config.linear_value_head_dim
    if name.endswith(("in_proj_qkv.weight", "in_proj_z.weight", "conv1d.weight")):
        weight = _tiled(weight, 0, width, config)
    elif name.endswith(("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias")):
        weight = _tiled(weight, 0, heads, config)
    elif name.endswith("linear_attn.out_proj.weight"):
        weight = _tiled(weight, 1, width, config)
    yield from _delta_rule(name, weight, config)


def qwen3next(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    if not name.endswith("in_proj_qkvz.weight"):
        yield from _delta_rule(name, weight, config)
        return
    keys = config.linear_num_key_heads
    share = config.linear_num_value_heads // keys * config.linear_value_head_dim
    widths = (config.linear_key_head_dim, config.linear_key_head_dim, share, share)
    parts = weight.view(keys, sum(widths), -1).split(widths, dim=1)
    *qkv, gate = (part.reshape(-1, weight.shape[1]) for part in parts)
    layer = name.split(".")[2]
    yield f"blk.{layer}.attn_qkv.weight", torch.cat(qkv)
    yield f"blk.{layer}.attn_gate.weight", gate


def _delta_rule(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    if name.endswith("A_log"):
        yield name, -weight.exp()
    elif name.endswith("dt_bias"):
        yield name.replace("dt_bias", "dt_proj.bias"), weight
    elif name.endswith("conv1d.weight"):
        yield name, weight.squeeze(1)
    elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        yield name, weight + 1
    else:
        yield from with_experts_apart(name, weight, config)


def gemma4(name: str, weight: torch.Tensor, _config: Any) -> Tensors:
    layer = f"blk.{name.split('.')[2]}" if ".layers." in name else ""
    if name.endswith("router.scale"):
        yield f"{layer}.ffn_gate_inp.scale", weight
    elif name.endswith("per_expert_scale"):
        yield f"{layer}.ffn_down_exps.scale", weight
    else:
        yield f"{name}.weight" if name.endswith(("layer_scalar", "_proj")) else name, weight


def deepseek(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    """The matrix of keys and values head by head, the first transposed."""
    if not name.endswith("kv_b_proj.weight"):
        yield from with_experts_apart(name, weight, config)
        return
    by_head = weight.view(config.num_attention_heads, -1, weight.shape[1])
    keys, values = by_head.split((config.qk_nope_head_dim, config.v_head_dim), dim=1)
    yield name.replace("kv_b_proj", "k_b_proj"), keys.transpose(1, 2)
    yield name.replace("kv_b_proj", "v_b_proj"), values


def minimax(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    if name.endswith("e_score_correction_bias"):
        yield f"blk.{name.split('.')[2]}.exp_probs_b.bias", weight
    else:
        yield from with_experts_apart(name, weight, config)


def apertus(name: str, weight: torch.Tensor, _config: Any) -> Tensors:
    """Numbers of activations are settings."""
    if ".act_fn." not in name:
        yield name, weight


def activations(model: Any) -> dict[str, list[float]]:
    """Apertus' numbers of activations, layer by layer."""
    functions = [layer.mlp.act_fn for layer in model.model.layers]
    return {
        f"xielu.{part}": [float(getattr(function, part)) for function in functions]
        for part in ("alpha_p", "alpha_n", "beta", "eps")
    }


class Gemma3n:
    """Projections between residual streams as one tensor. Keeps those of one model until it has all of them."""

    def __init__(self) -> None:
        self._found: dict[str, list[torch.Tensor]] = {}

    def __call__(self, name: str, weight: torch.Tensor, config: Any) -> Tensors:
        group, _, place = name.partition("_projections.")
        if place:
            matrices = self._found.setdefault(group, [])
            matrices.append(weight)
            if len(matrices) == config.altup_num_inputs - 1:
                yield f"{group}_projections.weight", torch.stack(self._found.pop(group))
        else:
            yield f"{name}.weight" if name.endswith("_scale") else name, weight


def afmoe(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    yield from with_experts_apart(name.replace(".expert_bias", ".expert_bias.bias"), weight, config)


def exaone_moe(name: str, weight: torch.Tensor, config: Any) -> Tensors:
    yield from with_experts_apart(
        name.replace(".gate.e_score_correction_bias", ".e_score_correction_bias"), weight, config
    )
