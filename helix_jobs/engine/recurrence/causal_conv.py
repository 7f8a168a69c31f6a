"""Causal depthwise convolution over a few inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def causal_conv(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Convolve each channel over time: the result at a token depends on its own input and those right before it.

    Sums are taken in float32, in the same order for each token, so a token's result does not depend on its neighbours.

    Args:
        inputs: ``[n, taps - 1 + t, channels]``
        weight: ``[taps, channels]`` float32, the oldest input's first.
        bias: ``[channels]`` float32, or None.

    Returns:
        ``[n, t, channels]`` float32.
    """
    num_taps = weight.shape[0]
    num_tokens = inputs.shape[1] - num_taps + 1
    exact = inputs.float()
    total = exact.narrow(1, 0, num_tokens) * weight[0]
    for tap in range(1, num_taps):
        total = total + exact.narrow(1, tap, num_tokens) * weight[tap]
    return total if bias is None else total + bias
