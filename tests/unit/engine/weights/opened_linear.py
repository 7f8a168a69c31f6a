"""A linear layer's weight as it lies in memory. Only this file names it: a packed layer hands out none."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from helix_jobs.engine.weights.int8_linear import Int8Linear
    from helix_jobs.engine.weights.linear import DenseLinear
    from helix_jobs.engine.weights.router_linear import RouterLinear


def held_weight(layer: DenseLinear | Int8Linear | RouterLinear) -> torch.Tensor:
    """The tensor that ``layer`` holds, whatever its layout."""
    return layer._weight
