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

from helix_jobs.engine.loading.bare_model import compute_frequencies, put, set_generation
from helix_jobs.engine.loading.expert_tensors import mxfp4_parts
from helix_jobs.engine.loading.model_sizes import skeleton
from helix_jobs.engine.loading.tensor_names import HEAD, canonical, is_computed
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
    model = skeleton(checkpoint.name, config)
    base, head, embedding = model.base_model, model.get_output_embeddings(), model.get_input_embeddings()
    compute_frequencies(base, config)
    has_head = False
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in checkpoint.files]
        where = {tensor: file for file in opened for tensor in file.keys()}  # noqa: SIM118  (it is no mapping)
        for tensor, file in where.items():
            if is_computed(tensor):
                continue
            parts = mxfp4_parts(tensor)
            if parts is None:
                name = canonical(tensor)
                has_head = has_head or name == HEAD
                module_name, _, kind = name.rpartition(".")
                module = head if name == HEAD else base.get_submodule(module_name)
                put(module, kind, file.get_tensor(tensor).clone())
            elif parts.blocks == tensor:
                module_name, _, kind = canonical(parts.stack).rpartition(".")
                scales = where[parts.scales].get_slice(parts.scales)
                put(base.get_submodule(module_name), kind, _stack(file.get_slice(tensor), scales))
    if not has_head:
        put(head, "weight", embedding.weight)
    set_generation(model, checkpoint.folder)
    read: PreTrainedModel = model
    return read


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
