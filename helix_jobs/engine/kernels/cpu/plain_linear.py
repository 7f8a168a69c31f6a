"""CompiledPlainLinear: a dense layer whose weight lies row by row, as compiled experts read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels
    from helix_jobs.engine.weights.linear import DenseLinear

_LANES: Final = 32


class CompiledPlainLinear:
    """A dense layer that compiled kernels multiply as it lies (satisfies ``Linear``).

    A token's numbers are the same bits in any number of rows.

    Trade-off: oneDNN's own layout is faster from some dozen rows on. An expert has fewer in most steps.

    Args:
        dense: The layer, not packed; its weight is shared.
        native: The kernels.
    """

    def __init__(self, dense: DenseLinear, native: NativeKernels) -> None:
        self.out_features, self.in_features = dense.out_features, dense.in_features
        # [out_features, in_features]
        self.weight = dense.weight
        # [out_features]
        self.bias = dense.bias
        self._native = native

    @classmethod
    def serves(cls, dense: DenseLinear, native: NativeKernels) -> bool:
        """Whether the kernels multiply this layer, and nothing here multiplies it faster in many rows."""
        fits = dense.in_features % _LANES == 0 and dense.weight.dtype is native.dtype and dense.weight.is_contiguous()
        return fits and not native.has_tiles

    @property
    def nbytes(self) -> int:
        """See ``Linear``."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return self._native.plain_linear(hidden, self.weight, self.bias, None)

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return self._native.plain_linear(hidden, self.weight, self.bias, residual)

    def pack(self) -> None:
        """See ``Linear``: the weight stays as it lies."""
