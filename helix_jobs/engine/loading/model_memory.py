"""Whether models fit into the device's memory, and into the machine's on the way there, before a weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.engine.devices.devices import describe_device, free_memory
from helix_jobs.engine.model.families.registry import describe
from helix_jobs.errors import InsufficientMemoryError

if TYPE_CHECKING:
    from helix_jobs.engine.loading.model_source import ModelSource

# The smallest KV cache worth starting with: one sequence of this many tokens.
SMALLEST_CONTEXT: Final = 1024
_HOST: Final = torch.device("cpu")


def check_device_memory(
    device: torch.device, dtype: torch.dtype, target: ModelSource, draft: ModelSource | None, *, has_int8_copy: bool
) -> None:
    """Compare the memory that the models need on the device with its free memory.

    Args:
        device: The destination.
        dtype: The dtype they compute in.
        target: The target model.
        draft: A draft model, or None.
        has_int8_copy: Whether an int8 copy of the target drafts.

    Raises:
        InsufficientMemoryError: The weights and the smallest useful cache do not fit.
    """
    available = free_memory(device)
    if available is None:  # DirectML does not tell; a failing allocation will
        return
    weights = target.checkpoint.parameters * dtype.itemsize
    tokens = min(SMALLEST_CONTEXT, int(target.config.max_position_embeddings))
    cache = describe(target.config).kv_bytes_per_token(dtype.itemsize) * tokens
    if draft is not None:
        weights += draft.checkpoint.parameters * dtype.itemsize
        cache += describe(draft.config).kv_bytes_per_token(dtype.itemsize) * tokens
    elif has_int8_copy:
        weights += target.checkpoint.parameters
        cache *= 2
    if weights + cache > available:
        raise InsufficientMemoryError(
            f"the models need {_gigabytes(weights)} and a KV cache for {tokens} tokens {_gigabytes(cache)}, but "
            f"{describe_device(device)} has {_gigabytes(available)} free; use a smaller model, draft none, or a "
            "smaller dtype"
        )


def check_host_memory(source: ModelSource, dtype: torch.dtype) -> None:
    """Compare the machine's memory that reading a model for another device takes with the free memory.

    Args:
        source: The model.
        dtype: The dtype it computes in.

    Raises:
        InsufficientMemoryError: The machine cannot hold the tensors on their way to the device.
    """
    checkpoint = source.checkpoint
    # The file is mapped; its largest tensor is in memory twice, as stored and as converted.
    needed = 2 * int(source.config.vocab_size) * int(source.config.hidden_size) * dtype.itemsize
    remedy = "close other programs"
    copied = 0 if checkpoint.is_uniform else checkpoint.copied_weights(dtype) * dtype.itemsize
    if copied > needed:
        needed = copied
        remedy += ", use a smaller model, or its safetensors in one dtype, which are not held there"
    available = free_memory(_HOST)
    if available is not None and needed > available:
        raise InsufficientMemoryError(
            f"model {checkpoint.name} passes through the machine's own memory on its way to the device: that takes "
            f"{_gigabytes(needed)}, and {_gigabytes(available)} are free; {remedy}"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
