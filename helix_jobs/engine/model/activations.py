"""Activations of the MLP, by the names that model configurations give them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.model.placement import Placement

tanh_gelu: Final = partial(functional.gelu, approximate="tanh")


def squared_relu(hidden: torch.Tensor) -> torch.Tensor:
    """``relu(x) ** 2`` (So et al. 2021, Primer)."""
    positive = functional.relu(hidden)
    return positive * positive


# Several names mean one function written in different ways. The results differ by rounding; the fused one is used.
ACTIVATIONS: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "gelu": functional.gelu,
    "gelu_python": functional.gelu,
    "gelu_new": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu_accurate": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "gelu_python_tanh": tanh_gelu,
    "relu": functional.relu,
    "relu2": squared_relu,
}


# Its weights are the model's own, so it is no function by a name alone.
XIELU: Final = "xielu"


class XieluActivation:
    """xIELU (Huang and Schlag 2024, arXiv:2411.13010): quadratic above zero, exponential below; Apertus uses it.

    Args:
        alpha_p: ``[]`` curvature above zero.
        alpha_n: ``[]`` factor below zero.
        beta: Slope at zero.
        eps: Upper bound of the exponent below zero.
    """

    def __init__(self, alpha_p: torch.Tensor, alpha_n: torch.Tensor, beta: float, eps: float) -> None:
        self.alpha_p, self.alpha_n, self.beta, self.eps = alpha_p, alpha_n, beta, eps

    @classmethod
    def of(cls, module: Any, place: Placement) -> XieluActivation:  # noqa: ANN401  (transformers' XIELUActivation)
        """Read the weights of transformers' module, whose alphas are kept positive by a softplus."""
        beta = place.cast(module.beta)
        alpha_p = functional.softplus(place.cast(module.alpha_p))
        alpha_n = beta + functional.softplus(place.cast(module.alpha_n))
        return cls(place.move(alpha_p), place.move(alpha_n), float(beta), float(place.cast(module.eps)))

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """The activation of ``hidden``, elementwise."""
        capped = hidden.clamp(max=self.eps)
        # DirectML has no kernel for the first form, which loses no digits near zero.
        grown = torch.expm1(capped) if capped.device.type in {"cpu", "cuda", "xpu", "mps"} else torch.exp(capped) - 1
        below = (grown - hidden) * self.alpha_n
        return torch.where(hidden > 0, self.alpha_p * hidden * hidden, below) + self.beta * hidden


@dataclass(frozen=True, slots=True)
class SparseActivation:
    """Statistical top-k (You et al. 2025, arXiv:2506.06644): of a row, gates far above its mean are kept (Gemma 3n).

    What a gate lies above ``mean + steps * deviation`` goes through the activation; the others are zero.

    Attributes:
        inner: The activation.
        steps: Standard deviations above the mean.
    """

    inner: Callable[[torch.Tensor], torch.Tensor]
    steps: float

    @classmethod
    def of(cls, inner: Callable[[torch.Tensor], torch.Tensor], sparsity: float, dtype: torch.dtype) -> SparseActivation:
        """That which leaves this share of normally distributed gates zero; the steps are rounded to ``dtype``."""
        steps = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(sparsity))
        return cls(inner, float(steps.to(dtype)))

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """The activation of gates ``[T, intermediate_size]``."""
        exact = hidden.float()
        mean = exact.mean(dim=-1, keepdim=True)
        centred = exact - mean
        deviation = (centred * centred).mean(dim=-1, keepdim=True).sqrt()
        return self.inner(functional.relu(exact - (mean + deviation * self.steps)).to(hidden.dtype))


@dataclass(frozen=True, slots=True)
class ClampedSwiglu:
    """SwiGLU with bounds and a shifted up projection (GPT-OSS, arXiv:2508.10925).

    ``(up + 1) * gate * sigmoid(alpha * gate)``, gates at most ``limit`` and ups at most ``limit`` in magnitude.

    Attributes:
        alpha: Steepness of the sigmoid.
        limit: The bound.
    """

    alpha: float
    limit: float

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """The activation of gates and ups side by side: from ``[T, 2 * size]`` to ``[T, size]``."""
        gate, up = hidden.chunk(2, dim=-1)
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        steep = gate * self.alpha
        # In double on a CPU, because torch computes the last elements of a tensor by another exponential function.
        factor = torch.sigmoid(steep.double()).to(hidden.dtype) if hidden.device.type == "cpu" else torch.sigmoid(steep)
        return (up + 1) * (gate * factor)
