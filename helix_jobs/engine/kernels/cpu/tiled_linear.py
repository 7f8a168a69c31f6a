"""TiledLinear: a bfloat16 layer in the processor's matrix tiles; a row's bits do not depend on the other rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels
    from helix_jobs.engine.weights.linear import DenseLinear

# Inputs of one tile.
_TILE_INPUTS: Final = 32


class TiledLinear:
    """A linear layer in compiled code, for processors with matrix tiles (Intel AMX).

    A library picks the order of summation by the number of rows; this code has one order for all numbers. Up to some
    sixty rows it is faster than oneDNN's product as well, with a thousand it is a little slower.

    Args:
        dense: The layer; its weight is copied.
        native: Compiled kernels that have tiles.
    """

    def __init__(self, dense: DenseLinear, native: NativeKernels) -> None:
        self.out_features, self.in_features = dense.out_features, dense.in_features
        self._bias = dense.bias
        self._native = native
        self._packed = native.pack_tiles(dense.weight)

    @staticmethod
    def serves(in_features: int, dtype: torch.dtype, native: NativeKernels) -> bool:
        """Whether layers of this shape and dtype can be computed in tiles here."""
        return native.has_tiles and dtype is torch.bfloat16 and in_features % _TILE_INPUTS == 0

    @property
    def nbytes(self) -> int:
        """See ``Linear``."""
        return self._packed.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return self._native.tiled_linear(hidden, self._packed, self.out_features, self._bias, None)

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return self._native.tiled_linear(hidden, self._packed, self.out_features, self._bias, residual)

    def pack(self) -> None:
        """See ``Linear``: the layer is packed already."""
