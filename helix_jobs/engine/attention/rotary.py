"""Rotary position embedding (Su et al. 2021, RoFormer) from tables computed once on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from helix_jobs.engine.attention.step_layout import StepLayout, TokenSlice
    from helix_jobs.engine.attention.step_plan import StepPlan

_FIRST_POSITIONS: Final = 2048


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosine and signed sine of a step's tokens, each ``[T, 1, rotary_dim]``.

    The sine of the first half is negated, so that rotating is ``x * cos + swapped_halves(x) * sin``.
    """

    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True, slots=True)
class LongFrequencies:
    """What LongRoPE (Ding et al. 2024, arXiv:2402.13753) rotates sequences by that outgrow the original context.

    Attributes:
        original_context: The longest sequence that is rotated by the other frequencies.
        inverse: ``[rotary_dim / 2]`` float32, the frequencies of all tokens of a longer sequence.
        scaling: Factor of its cosines and sines.
    """

    original_context: int
    inverse: torch.Tensor
    scaling: float


class RotaryTable:
    """Cosines and sines by position, in float32 on the CPU, then rounded to the model's dtype and kept on its device.

    Args:
        inverse_frequencies: ``[rotary_dim / 2]`` float32.
        scaling: Factor of cosines and sines (YaRN's attention factor).
        head_dim: Width of a head; dimensions beyond ``rotary_dim`` are not rotated.
        dtype: The model's.
        device: The model's.
        long: Frequencies of long sequences, or None. Their rows stand behind those of the original context, see
            ``rotary_rows``.

    The table grows by doubling as longer positions appear: most batches never reach a model's whole context.
    """

    def __init__(
        self,
        inverse_frequencies: torch.Tensor,
        scaling: float,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        long: LongFrequencies | None = None,
    ) -> None:
        self._inverse_frequencies = inverse_frequencies.float().cpu()
        self._long = long
        self._scaling = scaling
        self._dtype = dtype
        self._device = device
        self.rotary_dim = 2 * len(self._inverse_frequencies)
        self._rest = head_dim - self.rotary_dim
        self._num_positions = 0
        # [num_positions, 1, rotary_dim]; with long frequencies [original_context + num_positions, 1, rotary_dim]
        self._cos = torch.empty(0)
        self._sin = torch.empty(0)

    @property
    def original_context(self) -> int | None:
        """The longest sequence before other frequencies set in; None where none do."""
        return None if self._long is None else self._long.original_context

    def at(self, rows: torch.Tensor, num_positions: int) -> Rotation:
        """Look up the rotation of a step's tokens.

        Args:
            rows: From ``rows``; positions ``[T]`` where all frequencies are the same.
            num_positions: All positions are below it. The host knows it, so nothing is downloaded.
        """
        cos, sin = self.tables(num_positions)
        return Rotation(cos.index_select(0, rows), sin.index_select(0, rows))

    def rows(self, layout: StepLayout) -> torch.Tensor:
        """The row of each token of a step in ``tables``, ``[T]`` int64 on the device."""
        if self._long is None:
            return layout.positions
        assert layout.rotary_rows is not None, "the runner plans them for a model with long frequencies"
        return layout.rotary_rows

    def tables(self, num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines of at least ``num_positions`` positions, each ``[rows, 1, rotary_dim]``."""
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
        # [rows, rotary_dim / 2]
        angles = _angles(count if self._long is None else self._long.original_context, self._inverse_frequencies)
        cos, sin = angles.cos() * self._scaling, angles.sin() * self._scaling
        if self._long is not None:
            angles = _angles(count, self._long.inverse.float().cpu())
            cos = torch.cat((cos, angles.cos() * self._long.scaling))
            sin = torch.cat((sin, angles.sin() * self._long.scaling))
        self._cos = torch.cat((cos, cos), dim=1).to(self._dtype).unsqueeze(1).to(self._device)
        self._sin = torch.cat((-sin, sin), dim=1).to(self._dtype).unsqueeze(1).to(self._device)
        self._num_positions = count


class WideRotaryTable(RotaryTable):
    """Cosines and sines in float32 for a model of fewer bits: a head is rotated in float32 and rounded once."""

    def __init__(
        self,
        inverse_frequencies: torch.Tensor,
        scaling: float,
        head_dim: int,
        device: torch.device,
        *,
        long: LongFrequencies | None = None,
    ) -> None:
        super().__init__(inverse_frequencies, scaling, head_dim, torch.float32, device, long=long)

    def rotate(self, heads: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """See ``RotaryTable``."""
        return super().rotate(heads.float(), rotation).to(heads.dtype)


def rotary_rows(slices: Sequence[TokenSlice], plan: StepPlan, original_context: int) -> NDArray[np.int64]:
    """The rows of a step's tokens in a table with long frequencies, ``[T]``.

    A sequence within the original context has its positions' own rows; behind them stand those of longer sequences. A
    position beyond that context has none among the first, whatever its slice says: a draft model may be asked for it.

    Args:
        slices: The step's.
        plan: Where their tokens stand.
        original_context: Of the table.
    """
    positions = plan.positions
    rows = positions + original_context * (positions >= original_context)
    for part, offset in zip(slices, plan.offsets, strict=True):
        if part.is_long:
            own = slice(offset, offset + part.num_tokens)
            rows[own] = positions[own] + original_context
    return rows


def _angles(num_positions: int, inverse_frequencies: torch.Tensor) -> torch.Tensor:
    """``[num_positions, rotary_dim / 2]``."""
    return torch.arange(num_positions, dtype=torch.float32)[:, None] * inverse_frequencies[None, :]


def table_length(num_positions: int) -> int:
    """Positions that a table by position is made for, so that it grows by doubling."""
    return max(_FIRST_POSITIONS, 1 << (num_positions - 1).bit_length())
