"""Whether models fit into the device's memory, and into the machine's on the way there, before a weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.engine.devices.devices import describe_device, free_memory
from helix_jobs.engine.loading.model_pair import ModelPair
from helix_jobs.errors import InsufficientMemoryError
from helix_jobs.wording import gigabytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.engine.loading.model_pair import PairMemory
    from helix_jobs.engine.loading.model_source import ModelSource
    from helix_jobs.engine.loading.weight_format import WeightFormat

_HOST: Final = torch.device("cpu")


def check_device_memory(
    device: torch.device,
    chosen: WeightFormat,
    target: ModelSource,
    draft: ModelSource | None,
    *,
    has_int8_copy: bool,
    compiles: bool = False,
    copies_blocks: bool = True,
    adapter_numbers: int = 0,
    kv_cache_dtype: str = "auto",
) -> None:
    """Compare the memory that the models need on the device with its free memory.

    Args:
        device: The destination.
        chosen: The target's format.
        target: The target model.
        draft: A draft model, or None.
        has_int8_copy: Whether an int8 copy of the target drafts.
        compiles: Whether kernels are compiled for int8 layers.
        copies_blocks: Whether a copy is made of a target in blocks.
        adapter_numbers: See ``ModelPair``.
        kv_cache_dtype: HELIX_KV_CACHE_DTYPE.

    Raises:
        InsufficientMemoryError: The weights and the smallest useful cache do not fit. The message says what would.
    """
    available = free_memory(device)
    if available is None:  # DirectML does not tell; a failing allocation will
        return
    pair = ModelPair(
        device,
        target.sizes,
        None if draft is None else draft.sizes,
        has_int8_copy,
        compiles,
        copies_blocks,
        adapter_numbers,
        kv_cache_dtype,
    )
    memory = pair.memory(chosen)
    if memory.needed > available:
        remedy = shortage_remedy(pair.remedies(chosen, target.checkpoint.dtype, available))
        raise InsufficientMemoryError(f"{shortage(memory, device, available)}; {remedy}")


def shortage(memory: PairMemory, device: torch.device, available: int) -> str:
    """What the models need, and how much of it there is."""
    peak = f" ({gigabytes(memory.loading)} while they are loaded)" if memory.loading > memory.loaded else ""
    return (
        f"the models need {gigabytes(memory.loaded)}{peak} and a KV cache for {memory.smallest_tokens} tokens "
        f"{gigabytes(memory.smallest_cache)}, but {describe_device(device)} has {gigabytes(available)} free"
    )


def shortage_remedy(options: Sequence[str]) -> str:
    """What to do when models do not fit; ``options`` are those of ``ModelPair.remedies``."""
    return f"use {' or '.join(options)}" if options else "use a smaller model; no dtype of this one fits here"


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
    read_in = (checkpoint.dtype if checkpoint.is_uniform else None) or dtype
    copied = checkpoint.copied_weights(read_in) * read_in.itemsize
    # Held there as it is stored, until each tensor is converted.
    if checkpoint.gguf is not None or checkpoint.has_blocks or checkpoint.quantized is not None:
        copied = checkpoint.packed_bytes(dtype)
    if copied > needed:
        needed = copied
        remedy += (
            ", or use a smaller model"
            if checkpoint.is_merged
            else ", use a smaller model, or its safetensors in one dtype, which are not held there"
        )
    available = free_memory(_HOST)
    if available is not None and needed > available:
        raise InsufficientMemoryError(
            f"model {checkpoint.name} passes through the machine's own memory on its way to the device: that takes "
            f"{gigabytes(needed)}, and {gigabytes(available)} are free; {remedy}"
        )
