"""CompiledRmsNorm: a root mean square norm by a compiled kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.engine.model.norms import RmsNorm

if TYPE_CHECKING:
    import torch

    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels


class CompiledRmsNorm(RmsNorm):
    """The same norm over the same weight."""

    def __init__(self, plain: RmsNorm, native: NativeKernels) -> None:
        super().__init__(plain.weight, plain.eps)
        self._native = native

    @staticmethod
    def serves(norm: object, dtype: torch.dtype) -> bool:
        """Whether the kernels for this dtype can compute the norm."""
        return isinstance(norm, RmsNorm) and norm.weight.dtype == dtype and norm.weight.is_contiguous()

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Norm``."""
        return self._native.rms_norm(hidden, self.weight, self.eps)
