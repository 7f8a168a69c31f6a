"""ShortConv: LFM2's gated short convolution (Liquid AI 2025; transformers, ``Lfm2ShortConv``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.recurrence.causal_conv import causal_conv
from helix_jobs.engine.recurrence.recurrence import StateShape

if TYPE_CHECKING:
    import torch


class ShortConv:
    """``C * conv(B * x)``, where the layer's first product yields B, C and x (satisfies ``Recurrence``).

    Args:
        weight: ``[taps, hidden_size]`` float32, the oldest input's first.
        bias: ``[hidden_size]`` float32, or None.
    """

    is_independent: Final = True

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias
        self.shape = StateShape(window=weight.shape[0] - 1, width=weight.shape[1])

    def split(self, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Recurrence``."""
        # each: [T, hidden_size]
        before, after, values = projected.chunk(3, dim=-1)
        return before * values, after

    def advance(
        self, inputs: torch.Tensor, state: torch.Tensor | None, num_kept: int, padding: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See ``Recurrence``."""
        del state, num_kept, padding  # the window is the whole state
        return causal_conv(inputs, self._weight, self._bias).to(inputs.dtype), None

    def finish(self, mixed: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """See ``Recurrence``."""
        return rest * mixed
