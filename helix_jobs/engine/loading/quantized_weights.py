"""The weights of a quantised checkpoint, read tensor by tensor into a model without weights of its own.

Each tensor is read once, into memory of its own, and a quantised matrix becomes blocks a few rows at a time: no more
than one matrix is ever in memory twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from helix_jobs.engine.loading.bare_model import BareModel
from helix_jobs.engine.loading.quantized_format import assemble, plain_layout, refusal
from helix_jobs.engine.loading.stored_tensor import read_tensor
from helix_jobs.engine.loading.tensor_names import canonical
from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.block_stack import BlockStack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PretrainedConfig, PreTrainedModel

    from helix_jobs.engine.loading.checkpoint import Checkpoint
    from helix_jobs.engine.loading.quantized_format import QuantizedMatrix
    from helix_jobs.engine.loading.stored_tensor import Place, StoredTensor


def read_quantized_weights(config: PretrainedConfig, checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """Read a checkpoint whose tensors have passed ``check_layout``.

    Args:
        config: The model's.
        checkpoint: Its files.
        dtype: What activations are in. Beside float32, matrices of 16 bits become blocks of such numbers.

    Returns:
        The model that the configuration describes. The ``weight`` of a quantised linear layer is a ``BlockMatrix``, and
        quantised experts are a ``BlockStack``, or either is a float32 tensor where its rows cannot be parted into
        blocks; other weights are tensors, as they are stored. The model cannot be called.

    Raises:
        ModelError: The files have become shorter since their headers were read, or hold numbers that no matrix can
            have.
        UnsupportedArchitectureError: Experts have columns in an order of their own.
        OSError: A file cannot be read.
    """
    model = BareModel(checkpoint.name, config)
    places = {canonical(tensor): tensor for tensor in checkpoint.tensors}
    needed = {name: tensor for name, tensor in places.items() if model.needs(name)}
    for name, tensor in sorted(needed.items(), key=lambda item: _order(checkpoint, item[1])):
        module = model.module(name)
        is_matrix = module is model.embedding or isinstance(module, nn.Linear)
        value = _read(checkpoint, tensor, keeps=is_matrix and dtype == torch.float32)
        if isinstance(module, Conv1D) and isinstance(value, torch.Tensor) and checkpoint.tensors[tensor].matrix:
            value = value.t().contiguous()  # blocks stay as they are multiplied
        model.put(name, value)
    return model.whole()


def _order(checkpoint: Checkpoint, tensor: str) -> tuple[str, int]:
    """Where the files have a tensor, or the first of its parts."""
    return min((str(place.file), place.start) for place in _places(checkpoint.tensors[tensor]))


def _places(stored: StoredTensor) -> Iterator[Place]:
    if stored.place is not None:
        yield stored.place
    for part in (*stored.parts, *(() if stored.matrix is None else stored.matrix.parts.values())):
        yield from _places(part)


def _read(checkpoint: Checkpoint, tensor: str, *, keeps: bool) -> torch.Tensor | BlockMatrix | BlockStack:
    stored = checkpoint.tensors[tensor]
    if stored.matrix is not None:
        return _matrix(checkpoint, tensor, stored.matrix)
    if any(part.matrix is not None for part in stored.parts):
        return _stack(checkpoint, tensor, stored)
    if stored.parts:
        return torch.cat([read_tensor(checkpoint.name, part) for part in stored.parts]).view(stored.shape)
    values, layout = read_tensor(checkpoint.name, stored), plain_layout(tensor, stored) if keeps else None
    return values if layout is None else BlockMatrix(layout, values.view(torch.uint8))


def _matrix(checkpoint: Checkpoint, tensor: str, matrix: QuantizedMatrix) -> torch.Tensor | BlockMatrix:
    assert checkpoint.quantized is not None, "it has matrices"
    parts = {part: read_tensor(checkpoint.name, stored) for part, stored in matrix.parts.items()}
    return assemble(f"model {checkpoint.name}: the weight {tensor:.200}", checkpoint.quantized, matrix, parts)


def _stack(checkpoint: Checkpoint, tensor: str, stored: StoredTensor) -> torch.Tensor | BlockStack:
    """All experts of a layer, one behind another; of each the rows of a gate before those of an up projection."""
    count, rows, columns = stored.shape
    data, layout, first = torch.empty(0), None, 0
    for part in stored.parts:
        assert part.matrix is not None, "experts of one type"
        made = _matrix(checkpoint, tensor, part.matrix)
        if isinstance(made, BlockMatrix):
            if made.order is not None:
                assert checkpoint.quantized is not None, "it has matrices"
                reason = "experts with columns in an order of their own (desc_act)"
                raise refusal(checkpoint.name, checkpoint.quantized.name, reason)
            layout, made = made.layout, made.data
        if not first:
            data = made.new_empty((count * rows, made.shape[1]))
        data[first : first + len(made)] = made
        first += len(made)
    if layout is None:
        return data.view(count, rows, columns)
    return BlockStack((BlockMatrix(layout, data),), count)
