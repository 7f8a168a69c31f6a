"""SelectiveScan: Mamba's state space, in which every number of the state fades by a rate of its own.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", COLM 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

from helix_jobs.engine.recurrence.causal_conv import causal_conv
from helix_jobs.engine.recurrence.recurrence import StateShape

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is made of a token's channels: their time steps, a key and a query, which all channels share.

    Attributes:
        matrix: ``[rank + 2 * state_dim, channels]`` yields a narrow vector of time steps, the key and the query.
        steps: ``[channels, rank]`` makes each channel's time step of the narrow vector.
        step_bias: ``[channels]`` added to the time steps.
        norms: The weights of RMS norms, of the narrow vector, the key and the query (Jamba).
        eps: Added to a norm's mean square.
    """

    matrix: torch.Tensor
    steps: torch.Tensor
    step_bias: torch.Tensor
    norms: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    eps: float

    def __call__(self, channels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Time steps ``[n, t, channels]``, keys and queries ``[n, t, state_dim]``, float32.

        Args:
            channels: ``[n, t, channels]`` float32.
        """
        dtype = self.matrix.dtype
        chosen = functional.linear(channels.to(dtype), self.matrix).float()
        parts = chosen.split([len(norm) for norm in self.norms], dim=-1)
        narrow, keys, queries = (self._normed(part, norm) for part, norm in zip(parts, self.norms, strict=True))
        steps = functional.linear(narrow.to(dtype), self.steps).float()
        return functional.softplus(steps + self.step_bias.float()), keys, queries

    def _normed(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rows * torch.rsqrt((rows * rows).mean(dim=-1, keepdim=True) + self.eps) * weight.float()


class SelectiveScan:
    """A convolution, a selection and a state for each channel (satisfies ``Recurrence``).

    The layer's first product yields the channels and their gates, in this order. A channel with value x, rates A and
    time step d changes its state S ``[state_dim]`` and reads it, with a token's key k and query q::

        S <- exp(d * A) * S + d * x * k
        y = S q + D * x

    Trade-off: tokens are computed one after another, so a prompt takes several operators for each of its tokens. As
    each number of a state fades by its own rate, the masked products of Mamba-2 do not exist here, and the states of
    many tokens at once would take ``state_dim`` times the memory of their values.

    Args:
        taps: ``[taps, channels]`` float32 weight of the convolution.
        taps_bias: ``[channels]`` float32, or None.
        activation: Follows the convolution.
        selection: See ``Selection``.
        decay: ``[channels, state_dim]`` logarithms of the rates A, without their sign.
        skip: ``[channels]`` the factors D.
    """

    is_independent: Final = False

    def __init__(
        self,
        *,
        taps: torch.Tensor,
        taps_bias: torch.Tensor | None,
        activation: Callable[[torch.Tensor], torch.Tensor],
        selection: Selection,
        decay: torch.Tensor,
        skip: torch.Tensor,
    ) -> None:
        self._taps, self._taps_bias = taps, taps_bias
        self._activation = activation
        self._selection = selection
        self._rates = -decay.float().exp()
        self._skip = skip.float()
        self.shape = StateShape(window=taps.shape[0] - 1, width=taps.shape[1], matrix=tuple(decay.shape))

    def split(self, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Recurrence``."""
        width = self.shape.width
        return projected[:, :width], projected[:, width:]

    def advance(
        self, inputs: torch.Tensor, state: torch.Tensor | None, num_kept: int, padding: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See ``Recurrence``."""
        assert state is not None, "the layer has a state"
        # [n, t, channels]
        channels = self._activation(causal_conv(inputs, self._taps, self._taps_bias))
        steps, keys, queries = self._selection(channels)
        if padding is not None:  # a step of no time stores nothing, and lets nothing fade
            steps = steps * (~padding).unsqueeze(-1)
        stored = steps * channels
        results, kept = [], state
        for token in range(channels.shape[1]):
            # [n, channels, state_dim]
            fading = (steps[:, token].unsqueeze(-1) * self._rates).exp()
            state = torch.addcmul(stored[:, token].unsqueeze(-1) * keys[:, token].unsqueeze(1), state, fading)
            results.append(torch.matmul(state, queries[:, token].unsqueeze(-1)))
            if token + 1 == num_kept:
                kept = state
        # [n, t, channels]
        return torch.cat(results, dim=-1).transpose(1, 2) + channels * self._skip, kept

    def finish(self, mixed: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """See ``Recurrence``."""
        return (mixed * functional.silu(rest.float())).to(rest.dtype)
