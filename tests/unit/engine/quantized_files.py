"""Quantised safetensors directories, written from each format's definition, and the models that they stand for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.unit.engine.model_files import edit_config, save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Parts = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Quantized:
    """A matrix of whole numbers: ``weight = (codes - zeros) * scale``, each number of a group with its group's.

    Attributes:
        bits: Of a code.
        codes: ``[rows, columns]`` from 0 on.
        scale: ``[rows, groups]``, in the dtype in which it is stored.
        zeros: ``[rows, groups]`` from 0 on.
        groups: ``[columns]`` the group of each column.
    """

    bits: int
    codes: torch.Tensor
    scale: torch.Tensor
    zeros: torch.Tensor
    groups: torch.Tensor

    @property
    def dense(self) -> torch.Tensor:
        """The float32 weights."""
        return (self.codes - self.zeros[:, self.groups]).float() * self.scale.float()[:, self.groups]


def quantized(
    weight: torch.Tensor,
    bits: int,
    width: int | None = None,
    *,
    is_symmetric: bool = True,
    is_reordered: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> Quantized:
    """Round a matrix in groups of ``width`` columns, or in rows; reordered groups take their columns anywhere."""
    rows, columns = weight.shape
    width = width or columns
    generator = torch.Generator().manual_seed(rows + columns)
    groups = torch.arange(columns) // width
    if is_reordered:
        groups = groups[torch.randperm(columns, generator=generator)]
    count, middle = columns // width, 1 << bits - 1
    scale = torch.stack([weight[:, groups == group].abs().amax(1) / (middle - 1) for group in range(count)], dim=1)
    scale = scale.clamp(min=1e-6).to(dtype)
    zeros = torch.full((rows, count), middle)
    if not is_symmetric:
        zeros = torch.randint(1, 2 * middle, (rows, count), generator=generator)
    codes = torch.round(weight / scale.float()[:, groups]).long() + zeros[:, groups]
    return Quantized(bits, codes.clamp(0, 2 * middle - 1), scale, zeros, groups)


def packed(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """``[rows, numbers]`` along the rows into 32-bit words ``[rows, ceil(numbers * bits / 32)]``, the first lowest."""
    each = 32 // bits
    padded = nn.functional.pad(numbers, (0, -numbers.shape[1] % each)).view(len(numbers), -1, each)
    words = (padded << torch.arange(0, 32, bits)).sum(2)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def write_quantized(
    folder: Path,
    model: Any,
    store: Callable[[torch.Tensor], tuple[Parts, torch.Tensor]],
    config: Mapping[str, Any],
    *,
    is_kept: Callable[[str], bool] = lambda _: False,
    dtype: torch.dtype = torch.bfloat16,
) -> Any:
    """Write a model with quantised linear layers, and give it the weights that the files stand for.

    Args:
        folder: Where to.
        model: A model in float32; all but its quantised matrices is stored in ``dtype``.
        store: The parts of a matrix ``[rows, columns]`` by their names behind its module's, and its float32 weights.
        config: ``quantization_config``.
        is_kept: Whether a module of this name is not quantised. The output head never is.
        dtype: See above.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    save_checkpoint(folder, model)
    weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and not is_kept(name):
            del weights[f"{name}.weight"]
            parts, module.weight.data = store(module.weight.data)
            weights |= {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    edit_config(folder, quantization_config=config)
    return model


def write_quantized_tensors(
    folder: Path,
    model: Any,
    store: Callable[[torch.Tensor], tuple[Parts, torch.Tensor]],
    config: Mapping[str, Any],
    *,
    is_kept: Callable[[str], bool],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """As ``write_quantized``, but tensor by tensor, as published files have experts.

    What the files stand for lies beside them in ``dequantised``, in float32.

    Args:
        folder: Where to.
        model: As there.
        store: As there.
        config: As there.
        is_kept: Whether a matrix of this name is not quantised. Embeddings and the head never are.
        dtype: As there.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    plain = folder / "dequantised"
    save_checkpoint(plain, model)
    save_checkpoint(folder, model)
    weights, dense = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module == name or tensor.dim() != 2 or "embed" in name or "lm_head" in name or is_kept(name):
            weights[name], dense[name] = tensor.to(dtype), tensor.to(dtype).float()
            continue
        parts, dense[name] = store(tensor)
        weights |= {f"{module}.{part}": value.contiguous() for part, value in parts.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    save_file(
        {name: tensor.contiguous() for name, tensor in dense.items()}, plain / "model.safetensors", {"format": "pt"}
    )
    edit_config(folder, quantization_config=config)


def compressed_tensors_config(
    form: str,
    bits: int,
    *,
    strategy: str = "channel",
    kind: str = "int",
    activations: Any = None,
    **more: Any,
) -> dict[str, Any]:
    """``quantization_config`` as llm-compressor writes it; ``more`` goes to the weights."""
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, "dynamic": False, **more}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def pack_quantized(
    one: Quantized, *, is_symmetric: bool = True, is_reordered: bool = False
) -> tuple[Parts, torch.Tensor]:
    """compressed-tensors' ``pack-quantized``: codes along the columns, zero points along the rows."""
    parts = {
        "weight_packed": packed(one.codes, one.bits),
        "weight_scale": one.scale,
        "weight_shape": torch.tensor(one.codes.shape),
    }
    if not is_symmetric:
        parts["weight_zero_point"] = packed(one.zeros.t(), one.bits).t()
    if is_reordered:
        parts["weight_g_idx"] = one.groups.to(torch.int32)
    return parts, one.dense


def as_block_fp8(weight: torch.Tensor, *, block: tuple[int, int] | None) -> tuple[Parts, torch.Tensor]:
    """E4M3 numbers, with a factor for each block of rows and columns, or one for all, whose size has no dimension."""
    tall, wide = block or weight.shape
    rows, columns = torch.arange(weight.shape[0]) // tall, torch.arange(weight.shape[1]) // wide
    scale = torch.zeros(int(rows[-1]) + 1, int(columns[-1]) + 1)
    for row, column in torch.cartesian_prod(rows.unique(), columns.unique()).tolist():
        scale[row, column] = weight[rows == row][:, columns == column].abs().max() / 448
    whole = scale[rows][:, columns]
    codes = (weight / whole).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scale if block else scale.view(())}, codes.float() * whole


def as_gptq(one: Quantized, *, is_first: bool) -> tuple[Parts, torch.Tensor]:
    """GPTQ: transposed, codes packed along the inputs, zero points along the outputs; first version: minus one."""
    parts = {
        "qweight": packed(one.codes, one.bits).t(),
        "scales": one.scale.t(),
        "qzeros": packed(one.zeros.t() - int(is_first), one.bits),
        "g_idx": one.groups.to(torch.int32),
    }
    return parts, one.dense


def as_awq(one: Quantized) -> tuple[Parts, torch.Tensor]:
    """AWQ: transposed, packed along the outputs, of each eight first those with even numbers."""
    mixed = torch.arange(len(one.codes)).view(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(-1)
    parts = {
        "qweight": packed(one.codes.t()[:, mixed], 4),
        "scales": one.scale.t(),
        "qzeros": packed(one.zeros.t()[:, mixed], 4),
    }
    return parts, one.dense


def read_settings(folder: Path) -> dict[str, Any]:
    """What config.json says."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
