"""Placement: where the tensors of a decoder go, and in which dtype they get there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


class Float16OverflowError(Exception):
    """A weight lies beyond float16's range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Takes weights from the host and brings them, each finished and each alone, to the device.

    Whatever is made of weights (stacked, transposed) is made on the host. A device that allocates in segments would
    keep the memory of every tensor that was there for a moment only, and the machine never holds the model twice.

    Attributes:
        dtype: Of the weights.
        device: Where the decoder computes.
        checks_range: Weights may lie beyond float16's range, and ``dtype`` is float16.
    """

    dtype: torch.dtype
    device: torch.device
    checks_range: bool = False

    @classmethod
    def of(cls, model: nn.Module) -> Placement:
        """Where the model is, and as it is."""
        parameter = next(model.parameters())
        return cls(dtype=parameter.dtype, device=parameter.device)

    def cast(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight in ``dtype``, still on the host; it may share the original's memory.

        Raises:
            Float16OverflowError: See ``checks_range``.
        """
        values = weight.detach().to(self.dtype)
        if self.checks_range and not bool(torch.isfinite(values).all()):
            raise Float16OverflowError
        return values

    def move(self, made: torch.Tensor) -> torch.Tensor:
        """A tensor of its own, made on the host, on the device."""
        return made.to(self.device)

    def take(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight as it is stored, on the device, in memory of its own.

        Raises:
            Float16OverflowError: See ``checks_range``.
        """
        values = self.cast(weight)
        if self.device.type == "cpu" and values.data_ptr() == weight.data_ptr():
            return values.clone()
        return self.move(values)
