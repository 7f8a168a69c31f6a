"""Normalisation layers. Sums are taken in float32 whatever the dtype."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional


class Norm(Protocol):
    """Normalises the last dimension of packed activations."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the normalised ``hidden``, ``[..., size]``, in its dtype."""


class RmsNorm:
    """Root mean square norm (Zhang and Sennrich 2019): ``x / rms(x) * weight``."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        # [size]
        self.weight = weight
        self.eps = eps
        # torch's own RMS norm goes through operators that DirectML lacks.
        self._is_fused = weight.device.type in ("cpu", "cuda")
        # Widened once, not in every call.
        self._exact = weight if self._is_fused else weight.float()

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Norm``."""
        if self._is_fused and hidden.dtype == self.weight.dtype:
            return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)
        exact = hidden.contiguous().float()
        scale = torch.rsqrt((exact * exact).mean(dim=-1, keepdim=True) + self.eps)
        return (exact * scale * self._exact.float()).to(hidden.dtype)


class LayerNorm:
    """Layer norm with weight and bias (Ba et al. 2016)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> None:
        # each: [size]
        self.weight = weight
        self.bias = bias
        self.eps = eps

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Norm``."""
        return functional.layer_norm(hidden.contiguous(), self.weight.shape, self.weight, self.bias, self.eps)


class HeadLayerNorm:
    """Layer norm of each head with a weight of its own and no bias (Cohere, StableLM)."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        # [num_heads, head_dim]
        self.weight = weight
        self.eps = eps

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``Norm``; ``hidden`` is ``[T, num_heads, head_dim]``."""
        exact = functional.layer_norm(hidden.contiguous().float(), hidden.shape[-1:], None, None, self.eps)
        return (exact * self.weight.float()).to(hidden.dtype)
