"""The weights of a checkpoint whose experts are stored in MXFP4 blocks, read tensor by tensor; the blocks stay blocks.

A block is 32 numbers of four bits with a common power of two (OCP Microscaling Formats 1.0). Checkpoints keep the bytes
and the exponents in two tensors, and neighbouring numbers in one byte. GGUF files, and so ``BLOCK_LAYOUTS``, keep the
exponent before its bytes, and in a byte the numbers ``i`` and ``i + 16``. Blocks are put into that order expert by
expert, so the machine never holds the model twice.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import safe_open

from helix_jobs.engine.loading.bare_model import BareModel
from helix_jobs.engine.loading.expert_tensors import mxfp4_parts
from helix_jobs.engine.loading.tensor_names import canonical
from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.block_stack import BlockStack

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from helix_jobs.engine.loading.checkpoint import Checkpoint

_LAYOUT: Final = BLOCK_LAYOUTS["MXFP4"]


def read_mxfp4_weights(checkpoint: Checkpoint, config: PretrainedConfig) -> PreTrainedModel:
    """Read a checkpoint whose tensors have passed ``check_layout``.

    Returns:
        The model that the configuration describes. The parameters of experts are ``BlockStack``; all other weights are
        tensors, as they are stored. The model cannot be called.

    Raises:
        OSError, RuntimeError, safetensors.SafetensorError: A file cannot be read.
    """
    model = BareModel(checkpoint.name, config)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in checkpoint.files]
        where = {tensor: file for file in opened for tensor in file.keys()}  # noqa: SIM118  (it is no mapping)
        for tensor, file in where.items():
            parts = mxfp4_parts(tensor)
            if parts is None and model.needs(name := canonical(tensor)):
                model.put(name, file.get_tensor(tensor).clone())
            elif parts is not None and parts.blocks == tensor:
                scales = where[parts.scales].get_slice(parts.scales)
                model.put(canonical(parts.stack), _stack(file.get_slice(tensor), scales))
    return model.whole()


def _stack(blocks: Any, scales: Any) -> BlockStack:  # noqa: ANN401  (safetensors' slices)
    """The matrices of all experts. Blocks are ``[count, rows, row_blocks, 16]``, scales the same without the last."""
    count, rows, row_blocks = scales.get_shape()
    data = torch.empty((count, rows, row_blocks * _LAYOUT.nbytes), dtype=torch.uint8)
    for index in range(count):
        data[index] = gguf_blocks(blocks[index], scales[index])
    return BlockStack((BlockMatrix(_LAYOUT, data.view(count * rows, -1)),), count)


def gguf_blocks(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """A matrix in the order of GGUF files.

    Args:
        blocks: ``[rows, row_blocks, 16]`` uint8
        scales: ``[rows, row_blocks]`` uint8

    Returns:
        ``[rows, row_blocks * 17]`` uint8
    """
    rows, row_blocks, nbytes = blocks.shape
    # [rows, row_blocks, 32], in the order of the weights
    numbers = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2)
    packed = numbers[..., :nbytes] | numbers[..., nbytes:] << 4
    return torch.cat((scales.unsqueeze(-1), packed), dim=-1).view(rows, row_blocks * _LAYOUT.nbytes)
