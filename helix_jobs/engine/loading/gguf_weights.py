"""The weights of a GGUF file, read tensor by tensor into a model without weights of its own.

Matrices in blocks stay in blocks. Each tensor is read into memory of its own: if the file were mapped and then cut
short, reading a missing page would kill the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from helix_jobs.engine.loading.bare_model import compute_frequencies, put
from helix_jobs.engine.loading.model_sizes import skeleton
from helix_jobs.engine.loading.tensor_names import HEAD
from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.block_stack import BlockStack
from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from io import BufferedReader

    from transformers import PretrainedConfig, PreTrainedModel

    from helix_jobs.engine.loading.gguf_file import GgufFile
    from helix_jobs.engine.loading.stored_tensor import StoredTensor

_PLAIN: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# This architecture's converter stores the two numbers of a rotated pair side by side, in queries and keys.
_PERMUTED: Final = "llama"
_PERMUTED_MODULES: Final = ("self_attn.q_proj", "self_attn.k_proj")


def read_gguf_weights(name: str, config: PretrainedConfig, gguf: GgufFile) -> PreTrainedModel:
    """Read a file whose tensors have passed ``check_layout``.

    Returns:
        The model that the configuration describes. The ``weight`` of a linear layer or of the token embedding is a
        ``BlockMatrix`` ``[out_features, in_features]`` if the file stores it in blocks; other weights are tensors, as
        they are stored. The model cannot be called.

    Raises:
        ModelError: The file has become shorter since its header was read.
        OSError: The file cannot be read.
    """
    model = skeleton(name, config)
    base, head, embedding = model.base_model, model.get_output_embeddings(), model.get_input_embeddings()
    compute_frequencies(base, config)
    if gguf.rotary_factors is not None:
        base.rotary_emb.inv_freq.div_(gguf.rotary_factors)
    with gguf.path.open("rb") as stream:  # buffered: it reads on until the tensor is complete
        for tensor in sorted(gguf.tensors, key=lambda one: gguf.places[gguf.stacks.get(one, (one,))[0]]):
            module_name, _, kind = tensor.rpartition(".")
            if tensor in gguf.stacks:
                put(base.get_submodule(module_name), kind, _stack(name, stream, gguf, tensor))
                continue
            module = head if tensor == HEAD else base.get_submodule(module_name)
            kept = kind == "weight" and (module is embedding or isinstance(module, (nn.Linear, Conv1D)))
            data = _read(name, stream, gguf, tensor, gguf.tensors[tensor])
            if gguf.architecture == _PERMUTED and module_name.endswith(_PERMUTED_MODULES):
                data = _with_halves_apart(data, gguf.head_dim)
            put(module, kind, _weight(data, gguf.tensors[tensor].kind, module, is_kept=kept))
    if HEAD not in gguf.tensors:
        put(head, "weight", embedding.weight)
    tied: PreTrainedModel = model
    return tied


def make_dense(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Decode every matrix in blocks: the model can be called and saved afterwards."""
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


def _stack(name: str, stream: BufferedReader, gguf: GgufFile, stack: str) -> torch.Tensor | BlockStack:
    """All matrices of a layer's experts: in their blocks, or as plain numbers if a part of them is not in blocks."""
    count = gguf.tensors[stack].shape[0]
    stored = [gguf.stacked[tensor] for tensor in gguf.stacks[stack]]
    data = [_read(name, stream, gguf, tensor, gguf.stacked[tensor]) for tensor in gguf.stacks[stack]]
    parts = zip(data, stored, strict=True)
    if all(one.kind in BLOCK_LAYOUTS for one in stored):
        return BlockStack(tuple(BlockMatrix(BLOCK_LAYOUTS[one.kind], rows) for rows, one in parts), count)
    return torch.cat([_numbers(rows, one.kind).view(one.shape) for rows, one in parts], dim=1)


def _read(name: str, stream: BufferedReader, gguf: GgufFile, tensor: str, stored: StoredTensor) -> torch.Tensor:
    """The bytes of a tensor, row by row: ``[rows, bytes of a row]`` uint8."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    weights, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[stored.kind]]
    row_bytes = gguf.row_lengths[tensor] // weights * nbytes
    data = torch.empty((stored.elements // gguf.row_lengths[tensor], row_bytes), dtype=torch.uint8)
    stream.seek(gguf.places[tensor])
    room: Any = data.numpy()
    if stream.readinto(room) != data.nbytes:
        raise ModelError(f"model {name}: the GGUF file is cut short; fetch it again")
    return data


def _weight(data: torch.Tensor, kind: str, module: nn.Module, *, is_kept: bool) -> torch.Tensor | BlockMatrix:
    """A tensor of the file as the module has it; ``is_kept`` says whether it may stay in blocks."""
    if kind in BLOCK_LAYOUTS and is_kept:
        return BlockMatrix(BLOCK_LAYOUTS[kind], data)
    values = _numbers(data, kind)
    if isinstance(module, Conv1D) and len(values) > 1:
        return values.t().contiguous()
    is_row = isinstance(module, nn.Linear) and module.out_features == 1
    return values.squeeze(0) if len(values) == 1 and not is_row else values


def _numbers(data: torch.Tensor, kind: str) -> torch.Tensor:
    """Rows of bytes as plain numbers."""
    if kind in _PLAIN:
        return data.view(_PLAIN[kind])
    from gguf import GGMLQuantizationType, dequantize

    return torch.from_numpy(dequantize(data.numpy(), GGMLQuantizationType[kind]))


def _with_halves_apart(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The rows of queries or keys in transformers' order: of each head first every pair's first number.

    A row's bytes stay together, so rows in blocks can be reordered, too.
    """
    return rows.view(-1, head_dim // 2, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
