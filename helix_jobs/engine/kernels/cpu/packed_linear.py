"""CompiledPackedLinear: a layer over weights in blocks, decoded and multiplied by compiled code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.weights.packed_linear import PackedLinear

if TYPE_CHECKING:
    import torch

    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels


class CompiledPackedLinear(PackedLinear):
    """A packed layer whose products are computed by compiled kernels.

    Args:
        plain: The layer; its blocks are shared.
        native: The kernels.
    """

    def __init__(self, plain: PackedLinear, native: NativeKernels) -> None:
        super().__init__(plain.parts, plain.bias)
        self._native = native

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return self._native.packed_linear(hidden, self, None)

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return self._native.packed_linear(hidden, self, residual)
