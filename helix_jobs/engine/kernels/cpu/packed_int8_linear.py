"""CompiledPackedInt8Linear: a layer over weights in blocks, multiplied with rounded activations by compiled code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.weights.packed_int8_linear import PackedInt8Linear

if TYPE_CHECKING:
    import torch

    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels


class CompiledPackedInt8Linear(PackedInt8Linear):
    """A packed layer with rounded activations whose products are computed by compiled kernels.

    Args:
        plain: The layer; its blocks are shared.
        native: The kernels.
    """

    def __init__(self, plain: PackedInt8Linear, native: NativeKernels) -> None:
        super().__init__(plain.exact)
        self._native = native

    @property
    def is_fast(self) -> bool:
        """See ``PackedInt8Linear``."""
        return True

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return self._native.packed_int8_linear(hidden, self.exact, None)

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Linear``."""
        return self._native.packed_int8_linear(hidden, self.exact, residual)
