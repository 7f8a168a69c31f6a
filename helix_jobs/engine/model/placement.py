"""Placement: where the tensors of a decoder go, and in which dtype they get there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from helix_jobs.engine.weights.block_matrix import BlockMatrix

if TYPE_CHECKING:
    from torch import nn


class Float16OverflowError(Exception):
    """A weight lies beyond float16's range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Moves weights from the host to the device, one finished tensor at a time.

    Weights are stacked and transposed on the host, because a device that allocates in segments would keep the memory of
    every temporary tensor. The machine never holds the model twice.

    Attributes:
        dtype: Dtype of the weights.
        device: Where the decoder computes.
        checks_range: Whether ``dtype`` is float16 and weights may lie beyond its range.
        keeps_blocks: Whether matrices in blocks stay so. Else they are decoded to ``dtype``.
        has_whole_norms: Whether the weights of norms have their description's offset in them, as in GGUF files.
    """

    dtype: torch.dtype
    device: torch.device
    checks_range: bool = False
    keeps_blocks: bool = False
    has_whole_norms: bool = False

    @classmethod
    def of(cls, model: nn.Module) -> Placement:
        """A placement that leaves the model's device and dtype as they are."""
        parameter = next(model.parameters())
        return cls(dtype=parameter.dtype, device=parameter.device)

    def cast(self, weight: torch.Tensor | BlockMatrix) -> torch.Tensor:
        """The weight in ``dtype``, still on the host; it may share the original's memory.

        Raises:
            Float16OverflowError: See ``checks_range``.
        """
        values = weight.dense(self.dtype) if isinstance(weight, BlockMatrix) else weight.detach().to(self.dtype)
        if self.checks_range and not bool(torch.isfinite(values).all()):
            raise Float16OverflowError
        return values

    def move(self, made: torch.Tensor) -> torch.Tensor:
        """Move a tensor made on the host to the device."""
        return made.to(self.device)

    def take_matrix(self, weight: torch.Tensor | BlockMatrix) -> torch.Tensor | BlockMatrix:
        """A stored matrix as it is multiplied: in its blocks, if they are kept; else as ``take`` returns it."""
        if self.keeps_blocks and isinstance(weight, BlockMatrix):
            return weight.to(self.device)
        return self.take(weight)

    def take(self, weight: torch.Tensor | BlockMatrix) -> torch.Tensor:
        """A stored weight in ``dtype`` on the device, in memory of its own.

        Raises:
            Float16OverflowError: See ``checks_range``.
        """
        values = self.cast(weight)
        if isinstance(weight, BlockMatrix):
            return self.move(values)
        if self.device.type == "cpu" and values.data_ptr() == weight.data_ptr():
            return values.clone()
        return self.move(values)
