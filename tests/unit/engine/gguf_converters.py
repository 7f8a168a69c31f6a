"""What llama.cpp's converter makes of the weights of families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

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
