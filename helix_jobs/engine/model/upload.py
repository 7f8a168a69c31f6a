"""Bringing arrays planned on the host to the device, in one copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from helix_jobs.engine.devices.devices import compiles_each_shape
from helix_jobs.engine.devices.shape_sizes import power_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    IntArray = NDArray[np.int64]


def upload(arrays: Sequence[IntArray], device: torch.device) -> list[torch.Tensor]:
    """Bring arrays to the device together: each copy has a fixed cost, and on most devices a wait as well.

    On CUDA and ROCm nothing waits: the memory copied from is pinned, and torch keeps it until the copy has ended.

    Args:
        arrays: One-dimensional, contiguous, none of them empty.
        device: The destination. On the CPU arrays are not copied at all.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    lengths = [len(array) for array in arrays]
    padding = power_size(sum(lengths)) - sum(lengths) if compiles_each_shape(device) else 0
    if padding:
        arrays, lengths = [*arrays, np.zeros(padding, dtype=np.int64)], [*lengths, padding]
    together = torch.from_numpy(np.concatenate(arrays))
    is_pinned = device.type == "cuda"
    if is_pinned:
        together = together.pin_memory()
    return list(together.to(device, non_blocking=is_pinned).split(lengths))
