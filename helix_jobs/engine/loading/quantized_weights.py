"""The weights of a quantised checkpoint, read tensor by tensor into a model without weights of its own.

Each tensor is read once, into memory of its own, and a quantised matrix becomes blocks a few rows at a time: no more
than one matrix is ever in memory twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from transformers import GenerationConfig

from helix_jobs.engine.loading.bare_model import compute_frequencies, put
from helix_jobs.engine.loading.model_sizes import skeleton
from helix_jobs.engine.loading.quantized_format import assemble, plain_layout
from helix_jobs.engine.loading.stored_tensor import read_tensor
from helix_jobs.engine.loading.tensor_names import HEAD, canonical, is_computed
from helix_jobs.engine.weights.block_matrix import BlockMatrix

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from helix_jobs.engine.loading.checkpoint import Checkpoint

# Phi's output head has a bias.
_HEAD_BIAS: Final = "lm_head.bias"


def read_quantized_weights(config: PretrainedConfig, checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """Read a checkpoint whose tensors have passed ``check_layout``.

    Args:
        config: The model's.
        checkpoint: Its files.
        dtype: What activations are in. Beside float32, matrices of 16 bits become blocks of such numbers.

    Returns:
        The model that the configuration describes. The ``weight`` of a quantised linear layer is a ``BlockMatrix``, or
        a float32 tensor where its rows cannot be parted into blocks; other weights are tensors, as they are stored. The
        model cannot be called.

    Raises:
        ModelError: The files have become shorter since their headers were read, or hold numbers that no matrix can
            have.
        OSError: A file cannot be read.
    """
    model = skeleton(checkpoint.name, config)
    base, head, embedding = model.base_model, model.get_output_embeddings(), model.get_input_embeddings()
    compute_frequencies(base, config)
    places = {canonical(tensor): tensor for tensor in checkpoint.tensors if not is_computed(tensor)}
    if config.tie_word_embeddings:
        places.pop(HEAD, None)  # equal to the embedding, as ``read_weights`` has checked
    for short, tensor in sorted(places.items(), key=lambda item: _order(checkpoint, item[1])):
        module_name, _, kind = short.rpartition(".")
        module = head if short in (HEAD, _HEAD_BIAS) else base.get_submodule(module_name)
        is_matrix = module is embedding or isinstance(module, nn.Linear)
        put(module, kind, _read(checkpoint, tensor, keeps=is_matrix and dtype == torch.float32))
    if HEAD not in places:
        put(head, "weight", embedding.weight)
    if (checkpoint.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder, local_files_only=True)
    made: PreTrainedModel = model
    return made


def _order(checkpoint: Checkpoint, tensor: str) -> tuple[str, int]:
    """Where the files have a tensor, or the first of its parts."""
    matrix = checkpoint.matrices.get(tensor)
    stored = [checkpoint.tensors[tensor]] if matrix is None else list(matrix.parts.values())
    return min((str(one.place.file), one.place.start) for one in stored if one.place is not None)


def _read(checkpoint: Checkpoint, tensor: str, *, keeps: bool) -> torch.Tensor | BlockMatrix:
    name, matrix = checkpoint.name, checkpoint.matrices.get(tensor)
    if matrix is None:
        stored = checkpoint.tensors[tensor]
        values, layout = read_tensor(name, stored), plain_layout(tensor, stored) if keeps else None
        return values if layout is None else BlockMatrix(layout, values.view(torch.uint8))
    assert checkpoint.quantized is not None, "it has matrices"
    parts = {part: read_tensor(name, stored) for part, stored in matrix.parts.items()}
    return assemble(f"model {name}: the weight {tensor:.200}", checkpoint.quantized, matrix, parts)
