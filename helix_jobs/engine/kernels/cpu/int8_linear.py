"""CompiledInt8Linear: an int8 layer with compiled kernels around oneDNN's product, or in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.kernels.cpu.int8_matrix import Int8Matrix
from helix_jobs.engine.weights.int8_linear import SMALLEST_SCALE, ZERO_POINT, Int8Linear, unsigned_product

if TYPE_CHECKING:
    import torch

    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels


class CompiledInt8Linear(Int8Linear):
    """An int8 layer that, once packed, rounds activations and scales products with compiled kernels.

    Where oneDNN packs nothing, a compiled kernel also computes the product, if the processor multiplies bytes.

    Args:
        plain: The layer, not packed yet; its weight is shared.
        native: The kernels.
    """

    def __init__(self, plain: Int8Linear, native: NativeKernels) -> None:
        assert plain.rows is not None, "a packed weight cannot be read back"
        super().__init__(plain.rows, plain.scale, plain.bias)
        self._native = native
        self._matrix: Int8Matrix | None = None  # the weight for the compiled kernel, once packed

    @property
    def is_fast(self) -> bool:
        """See ``Int8Linear``."""
        return super().is_fast or self._native.has_byte_products

    @property
    def nbytes(self) -> int:
        """See ``Linear``."""
        return super().nbytes + (0 if self._matrix is None else self._matrix.sum_bytes)

    def pack(self) -> None:
        """See ``Int8Linear``."""
        super().pack()
        if self.rows is not None and self._native.has_byte_products:
            self._matrix = Int8Matrix.of(self.rows, self.scale, self.bias)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        if self._is_packed:
            return self._packed_product(hidden, None)
        if self._matrix is not None:
            return self._native.int8_linear(hidden, self._matrix, None)
        return super().__call__(hidden)

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        if self._is_packed:
            return self._packed_product(hidden, residual)
        if self._matrix is not None:
            return self._native.int8_linear(hidden, self._matrix, residual)
        return super().add_to(residual, hidden)

    def _packed_product(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        rows, row_scale = self._native.quantize_rows(hidden, SMALLEST_SCALE, ZERO_POINT)
        product = unsigned_product(rows, self._weight, self._scale)
        return self._native.scale_rows(product, row_scale, self._bias, residual, hidden.dtype)
