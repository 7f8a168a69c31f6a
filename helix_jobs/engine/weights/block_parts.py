"""The parts that block layouts are made of: groups of weights, halves of bytes, float16 scales, tables of levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

# The sixteen levels of IQ4_NL and IQ4_XS, and the doubled sixteen numbers of a 4-bit float with two exponent bits.
NONLINEAR_LEVELS: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
MXFP4_LEVELS: Final = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


@dataclass(frozen=True, slots=True)
class Groups:
    """Blocks taken apart into groups of weights: ``weight = scale * level + offset``.

    Attributes:
        levels: ``[n, groups, weights of a group]``, whole numbers of 8 or 16 bits, or small floats.
        scale: ``[n, groups, 1]`` float32.
        offset: As ``scale``, or None.
    """

    levels: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None = None

    def weights(self) -> torch.Tensor:
        """``[n, weights of a block]`` float32, rounded after the product and after the sum, as ggml's are."""
        weights = self.scale * self.levels
        if self.offset is not None:
            weights = weights + self.offset
        return weights.flatten(1)


def float16s(two_bytes: torch.Tensor) -> torch.Tensor:
    """One float16 number a block, ``[n, 2]`` uint8, as float32: ``[n, 1, 1]``."""
    return two_bytes.contiguous().view(torch.float16).float().unsqueeze(2)


def shifted(values: torch.Tensor, shifts: Sequence[int]) -> torch.Tensor:
    """Unsigned bytes shifted to the right by each of some numbers of bits, along the last dimension by broadcasting."""
    return values >> torch.tensor(shifts, dtype=values.dtype, device=values.device)


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The lower halves of ``[n, bytes]`` followed by the upper halves: ``[n, 2 * bytes]`` numbers from 0 to 15."""
    return torch.cat((packed & 15, packed >> 4), dim=1)


def chosen(levels: Sequence[int], indices: torch.Tensor) -> torch.Tensor:
    """The levels at these places of a table, int8."""
    return torch.tensor(levels, dtype=torch.int8, device=indices.device)[indices.long()]
