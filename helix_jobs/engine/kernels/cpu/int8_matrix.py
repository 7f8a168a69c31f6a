"""Int8Matrix: an int8 weight as compiled code reads it, row by row."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final, Self

import torch

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
_SUM_BYTES: Final = 4


class MatrixStruct(ctypes.Structure):
    """``Matrix`` of ``bytes.h``."""

    _fields_ = (
        *((name, _POINTER) for name in ("weight", "scale", "row_sum", "bias")),
        ("rows", _SIZE),
        ("columns", _SIZE),
    )


@dataclass(frozen=True, slots=True)
class Int8Matrix:
    """A weight described for compiled code, and the tensors it points into: they must live as long as it is used.

    Attributes:
        struct: The description that compiled code reads.
        kept: The tensors that ``struct`` points into.
    """

    struct: MatrixStruct
    kept: tuple[torch.Tensor, ...]

    @property
    def sum_bytes(self) -> int:
        """Bytes of the sums of its rows, which stand beside the weight."""
        return int(self.struct.rows) * _SUM_BYTES

    @classmethod
    def of(cls, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> Self:
        """Describe a weight.

        Args:
            weight: ``[rows, columns]`` int8.
            scale: ``[rows]`` float32.
            bias: ``[rows]`` float32, or None.
        """
        weight, scale = weight.contiguous(), scale.contiguous()
        row_sum = weight.sum(dim=1, dtype=torch.int32)
        struct = MatrixStruct(
            weight.data_ptr(),
            scale.data_ptr(),
            row_sum.data_ptr(),
            None if bias is None else bias.data_ptr(),
            *weight.shape,
        )
        return cls(struct, (weight, scale, row_sum) if bias is None else (weight, scale, row_sum, bias))
