"""Rotary position embedding (Su et al. 2021, RoFormer) from tables computed once on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

_FIRST_POSITIONS: Final = 2048


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosine and signed sine of a step's tokens, each ``[T, 1, rotary_dim]``.

    The sine of the first half is negated, so that rotating is ``x * cos + swapped_halves(x) * sin``.
    """

    cos: torch.Tensor
    sin: torch.Tensor


class RotaryTable:
    """Cosines and sines by position, in float32 on the CPU, then rounded to the model's dtype and kept on its device.

    Args:
        inverse_frequencies: ``[rotary_dim / 2]`` float32.
        scaling: Factor of cosines and sines (YaRN's attention factor).
        head_dim: Width of a head; dimensions beyond ``rotary_dim`` are not rotated.
        dtype: The model's.
        device: The model's.

    The table grows by doubling as longer positions appear: most batches never reach a model's whole context.
    """

    def __init__(
        self,
        inverse_frequencies: torch.Tensor,
        scaling: float,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._inverse_frequencies = inverse_frequencies.float().cpu()
        self._scaling = scaling
        self._dtype = dtype
        self._device = device
        self.rotary_dim = 2 * len(self._inverse_frequencies)
        self._rest = head_dim - self.rotary_dim
        self._num_positions = 0
        # [num_positions, 1, rotary_dim]
        self._cos = torch.empty(0)
        self._sin = torch.empty(0)

    def at(self, positions: torch.Tensor, num_positions: int) -> Rotation:
        """Look up the rotation of a step's tokens.

        Args:
            positions: ``[T]`` int64 on the device.
            num_positions: All positions are below it. The host knows it, so nothing is downloaded.
        """
        cos, sin = self.tables(num_positions)
        return Rotation(cos.index_select(0, positions), sin.index_select(0, positions))

    def tables(self, num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines of at least ``num_positions`` positions, each ``[positions, 1, rotary_dim]``."""
        if num_positions > self._num_positions:
            self._grow(num_positions)
        return self._cos, self._sin

    def rotate(self, heads: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """Rotate ``[T, num_heads, head_dim]``."""
        half = self.rotary_dim // 2
        if self._rest == 0:
            first, second = heads.split((half, half), dim=-1)
            return heads * rotation.cos + torch.cat((second, first), dim=-1) * rotation.sin
        first, second, rest = heads.split((half, half, self._rest), dim=-1)
        rotated = torch.cat((first, second), dim=-1) * rotation.cos + torch.cat((second, first), -1) * rotation.sin
        return torch.cat((rotated, rest), dim=-1)

    def _grow(self, num_positions: int) -> None:
        count = table_length(num_positions)
        # [count, rotary_dim / 2]
        angles = torch.arange(count, dtype=torch.float32)[:, None] * self._inverse_frequencies[None, :]
        cos, sin = angles.cos() * self._scaling, angles.sin() * self._scaling
        self._cos = torch.cat((cos, cos), dim=1).to(self._dtype).unsqueeze(1).to(self._device)
        self._sin = torch.cat((-sin, sin), dim=1).to(self._dtype).unsqueeze(1).to(self._device)
        self._num_positions = count


class WideRotaryTable(RotaryTable):
    """Cosines and sines in float32 for a model of fewer bits: a head is rotated in float32 and rounded once."""

    def __init__(self, inverse_frequencies: torch.Tensor, scaling: float, head_dim: int, device: torch.device) -> None:
        super().__init__(inverse_frequencies, scaling, head_dim, torch.float32, device)

    def rotate(self, heads: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """See ``RotaryTable``."""
        return super().rotate(heads.float(), rotation).to(heads.dtype)


def table_length(num_positions: int) -> int:
    """Positions that a table by position is made for, so that it grows by doubling."""
    return max(_FIRST_POSITIONS, 1 << (num_positions - 1).bit_length())
