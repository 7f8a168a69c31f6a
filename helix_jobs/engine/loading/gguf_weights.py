"""The weights of a GGUF file, read parameter by parameter into a model without weights of its own.

Matrices in blocks stay in blocks. Each tensor is read into memory of its own: if the file were mapped and then cut
short, reading a missing page would kill the process.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, Self

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from helix_jobs.engine.loading.bare_model import BareModel
from helix_jobs.engine.loading.gguf_config import ROTARY_FACTORS
from helix_jobs.engine.loading.gguf_row_order import delta_rows, grouped_rows, halves_order, value_order
from helix_jobs.engine.loading.gguf_tensors import STACKED_FORMS
from helix_jobs.engine.model.families.registry import FAMILIES
from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.block_stack import BlockStack
from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel

    from helix_jobs.engine.loading.gguf_file import GgufFile
    from helix_jobs.engine.loading.gguf_tensors import GgufTensor, GgufWeight

_PLAIN: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_gguf_weights(name: str, config: PretrainedConfig, gguf: GgufFile, dtype: torch.dtype) -> PreTrainedModel:
    """Read a file whose tensors have passed ``check_layout``.

    Args:
        name: The model's name as the user gave it.
        config: The model's configuration.
        gguf: The file.
        dtype: Of experts and tables that do not stay in blocks.

    Returns:
        The model that the configuration describes. The ``weight`` of a linear layer or of the token embedding is a
        ``BlockMatrix`` ``[out_features, in_features]`` if the file stores it in blocks, and parameters of experts are
        ``BlockStack``; other weights are tensors, as they are stored. Norms have their offset in their weights, see
        ``Placement``. The model cannot be called.

    Raises:
        ModelError: The file has become shorter since its header was read.
        OSError: The file cannot be read.
    """
    model = BareModel(name, config)
    if gguf.family.has_frequencies is True and ROTARY_FACTORS in gguf.rotary:
        model.base.rotary_emb.inv_freq.div_(gguf.rotary[ROTARY_FACTORS])
    is_unread = FAMILIES[config.model_type].is_unread
    with _Tensors(name) as tensors:
        for parameter, weight in sorted(gguf.weights.items(), key=lambda one: _order(one[1])):
            if is_unread is not None and is_unread(config, parameter):
                continue
            if weight.form in STACKED_FORMS:
                model.put(parameter, _stack(tensors, weight, dtype))
                continue
            module = model.module(parameter)
            may_keep = module is model.embedding or isinstance(module, (nn.Linear, Conv1D))
            is_kept = may_keep and parameter.endswith(".weight")
            model.put(parameter, _weight(tensors, weight, gguf, dtype, is_kept=is_kept))
    for parameter, number in gguf.listed.items():
        stored = getattr(model.module(parameter), parameter.rpartition(".")[2])
        model.put(parameter, torch.full(stored.shape, number))
    return model.whole()


def make_dense(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Decode every matrix in blocks: the model can be called and saved afterwards, if its norms have no offset."""
    decoded: dict[int, nn.Parameter] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, BlockMatrix):
            if id(weight) not in decoded:
                values = weight.dense(dtype)
                decoded[id(weight)] = nn.Parameter(
                    values.t().contiguous() if isinstance(module, Conv1D) else values, requires_grad=False
                )
            del module.weight
            module.weight = decoded[id(weight)]


def _order(weight: GgufWeight) -> tuple[str, int]:
    """Where a parameter stands: files are read from their beginning to their end."""
    return str(weight.parts[0].file), weight.parts[0].place


class _Tensors:
    """Reads the tensors of a model's files."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._files = contextlib.ExitStack()
        self._open: dict[Path, BufferedReader] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def rows(self, tensor: GgufTensor, first: int = 0, count: int | None = None) -> torch.Tensor:
        """The bytes of a tensor's rows: ``[rows, bytes of a row]`` uint8.

        Args:
            tensor: The tensor.
            first: The first row.
            count: Number of rows; None for all.
        """
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        weights, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.stored.kind]]
        row_bytes = tensor.row_length // weights * nbytes
        rows = tensor.stored.elements // tensor.row_length if count is None else count
        data = torch.empty((rows, row_bytes), dtype=torch.uint8)
        if tensor.file not in self._open:  # buffered: it reads on until the tensor is complete
            self._open[tensor.file] = self._files.enter_context(tensor.file.open("rb"))
        stream, room = self._open[tensor.file], _array(data)
        stream.seek(tensor.place + first * row_bytes)
        if stream.readinto(room) != data.nbytes:
            raise ModelError(f"model {self._name}: the GGUF file is cut short; fetch it again")
        return data


def _array(data: torch.Tensor) -> Any:  # noqa: ANN401  (numpy's annotations name no buffer)
    return data.numpy()


def _weight(
    tensors: _Tensors, weight: GgufWeight, gguf: GgufFile, dtype: torch.dtype, *, is_kept: bool
) -> torch.Tensor | BlockMatrix:
    """A parameter; ``is_kept`` says whether it may stay in blocks.

    A row's bytes stay together, so rows in blocks can be put into another order, too.
    """
    if weight.form == "latent":
        return _latent(tensors, weight)
    kinds = {part.stored.kind for part in weight.parts}
    is_vector, span = len(weight.parts[0].stored.shape) == 1, weight.span
    own_rows = (0, None) if span is None or is_vector else (span.first, span.length)
    rows = [tensors.rows(part, *own_rows) for part in weight.parts]
    kind, shape = kinds.pop(), weight.stored.shape
    if kinds:  # parts of several types have no common blocks
        numbers = zip(rows, weight.parts, strict=True)
        kind, rows = "F32", [_numbers(one, part.stored.kind).float().view(torch.uint8) for one, part in numbers]
    data = torch.cat(rows) if len(rows) > 1 else rows[0]
    if is_vector:  # in one row of plain numbers
        data = _numbers(data, kind).view(-1, 1)
        data = data if span is None else data[span.first : span.first + span.length]
    if (order := _order_of_rows(weight, gguf, len(data))) is not None:
        data = data.index_select(0, order)
    columns = None
    if weight.tiling == "columns":  # which of the file's columns stands where
        columns = value_order(shape[-1], gguf.settings)
    if weight.form == "decoded" and kind in BLOCK_LAYOUTS:
        return BlockMatrix(BLOCK_LAYOUTS[kind], data).dense(dtype)
    if kind in BLOCK_LAYOUTS and is_kept:
        return BlockMatrix(BLOCK_LAYOUTS[kind], data, None if columns is None else columns.argsort())
    values = data if is_vector else _numbers(data, kind)
    if columns is not None:
        values = values.index_select(1, columns)
    if weight.form == "exponential":
        values = values.double().neg().log().float()
    return values.t().contiguous() if weight.form == "transposed" else values.view(shape)


def _latent(tensors: _Tensors, weight: GgufWeight) -> torch.Tensor:
    # [heads, rank, keys], [heads, values, rank]
    keys, values = (
        _numbers(tensors.rows(part), part.stored.kind).float().view(part.stored.shape) for part in weight.parts
    )
    return torch.cat((keys.transpose(1, 2), values), dim=1).flatten(0, 1)


def _order_of_rows(weight: GgufWeight, gguf: GgufFile, num_rows: int) -> torch.Tensor | None:
    if weight.form == "permuted":
        return halves_order(num_rows, gguf.head_dim)
    if weight.form == "delta":
        return delta_rows(gguf.settings)
    if weight.form == "grouped":
        return grouped_rows(gguf.heads)
    return value_order(num_rows, gguf.settings) if weight.tiling == "rows" else None


def _stack(tensors: _Tensors, weight: GgufWeight, dtype: torch.dtype) -> torch.Tensor | BlockStack:
    """All matrices of a layer's experts: in their blocks, or as plain numbers if a part of them is not in blocks."""
    count, is_matrix = weight.stored.shape[0], len(weight.stored.shape) > 2  # noqa: PLR2004  (else biases)
    if is_matrix and all(part.stored.kind in BLOCK_LAYOUTS for part in weight.parts):
        matrices = [BlockMatrix(BLOCK_LAYOUTS[part.stored.kind], tensors.rows(part)) for part in weight.parts]
        return BlockStack(tuple(matrices), count)
    made = torch.empty(weight.stored.shape, dtype=dtype)
    for index in range(count):  # one at a time: decoded, a layer's experts may take more memory than the whole file
        made[index] = _expert(tensors, weight, index, is_matrix=is_matrix)
    return made


def _expert(tensors: _Tensors, weight: GgufWeight, index: int, *, is_matrix: bool) -> torch.Tensor:
    """The matrix, or bias, of one expert."""
    found = []
    for part in weight.parts:
        rows = part.stored.shape[1] if is_matrix else 1
        values = _numbers(tensors.rows(part, index * rows, rows), part.stored.kind)
        found.append(values if is_matrix else values[0])
    # [outputs] or [outputs, inputs]
    outputs = torch.stack(found, dim=1).flatten(0, 1) if weight.form == "paired" else torch.cat(found)
    return outputs if weight.form == "stack" or not is_matrix else outputs.t()


def _numbers(data: torch.Tensor, kind: str) -> torch.Tensor:
    """Rows of bytes as plain numbers."""
    if kind in _PLAIN:
        return data.view(_PLAIN[kind])
    from gguf import GGMLQuantizationType, dequantize

    return torch.from_numpy(dequantize(data.numpy(), GGMLQuantizationType[kind]))
