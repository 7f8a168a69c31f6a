"""Mamba2: selective state spaces with a scalar decay a head (Dao and Gu, "Transformers are SSMs", ICML 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

from helix_jobs.engine.recurrence.causal_conv import causal_conv
from helix_jobs.engine.recurrence.linear_memory import MemoryTokens, advance_memory
from helix_jobs.engine.recurrence.recurrence import StateShape

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaHeads:
    """Heads of Mamba-2.

    Attributes:
        num_heads: Heads, each with a state.
        head_dim: Values of a head.
        num_groups: Groups of heads that share keys and queries (B and C).
        state_dim: Width of a key and of a query.
    """

    num_heads: int
    head_dim: int
    num_groups: int
    state_dim: int

    @property
    def width(self) -> int:
        """Values of all heads."""
        return self.num_heads * self.head_dim

    @property
    def widths(self) -> tuple[int, int, int]:
        """Widths of a token's values, keys and queries."""
        keys = self.num_groups * self.state_dim
        return self.width, keys, keys


class Mamba2:
    """A convolution, a linear memory and a gated norm (satisfies ``Recurrence``).

    The layer's first product yields the gate of the norm, values, keys and queries, and the time step of each head, in
    this order.

    Args:
        heads: The heads.
        taps: ``[taps, channels]`` float32 weight of the convolution of values, keys and queries.
        taps_bias: ``[channels]`` float32, or None.
        activation: Follows the convolution.
        decay: ``[num_heads]`` logarithm of each head's decay in a time step of one.
        step_bias: ``[num_heads]`` added to a token's time steps.
        skip: ``[num_heads]`` factor of a token's own values in its result.
        norm: ``[num_heads * head_dim]`` weight of the norm, which each group of heads has for itself; None without one.
        eps: Added to that norm's mean square.
        is_gated_last: Whether the gate is applied behind the norm (Falcon-H1); else the norm reads gated results.
    """

    is_independent: Final = False

    def __init__(
        self,
        heads: MambaHeads,
        *,
        taps: torch.Tensor,
        taps_bias: torch.Tensor | None,
        activation: Callable[[torch.Tensor], torch.Tensor],
        decay: torch.Tensor,
        step_bias: torch.Tensor,
        skip: torch.Tensor,
        norm: torch.Tensor | None,
        eps: float,
        is_gated_last: bool = False,
    ) -> None:
        self._heads = heads
        self._taps, self._taps_bias = taps, taps_bias
        self._activation = activation
        self._decay = -decay.float().exp()
        self._step_bias = step_bias.float()
        self._skip = skip.float()
        self._norm = None if norm is None else norm.float()
        self._eps = eps
        self._is_gated_last = is_gated_last
        self.shape = StateShape(
            window=taps.shape[0] - 1,
            width=taps.shape[1] + heads.num_heads,
            matrix=(heads.num_heads, heads.state_dim, heads.head_dim),
        )

    def split(self, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Recurrence``."""
        width = self._heads.width
        return projected[:, width:], projected[:, :width]

    def advance(
        self, inputs: torch.Tensor, state: torch.Tensor | None, num_kept: int, padding: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See ``Recurrence``."""
        assert state is not None, "the layer has a state"
        heads, (num_sequences, num_rows, _) = self._heads, inputs.shape
        num_tokens, channels = num_rows - self.shape.window, self._taps.shape[1]
        mixed = self._activation(causal_conv(inputs[:, :, :channels], self._taps, self._taps_bias))
        values, keys, queries = mixed.split(heads.widths, dim=-1)
        # [n, t, num_heads]
        steps = functional.softplus(inputs[:, self.shape.window :, channels:].float() + self._step_bias)
        if padding is not None:  # a step of no time stores nothing, and lets nothing fade
            steps = steps * (~padding).unsqueeze(-1)
        tokens = MemoryTokens(
            self._by_head(queries, heads.state_dim),
            self._by_head(keys, heads.state_dim),
            self._by_head(values, heads.head_dim),
            steps.transpose(1, 2).reshape(-1, num_tokens),
            (steps * self._decay).transpose(1, 2).reshape(-1, num_tokens),
        )
        # [n * num_heads, t, head_dim]
        results, kept = advance_memory(state.flatten(0, 1), tokens, num_kept, corrects=False)
        results = results.view(num_sequences, heads.num_heads, num_tokens, heads.head_dim)
        own = values.view(num_sequences, num_tokens, heads.num_heads, heads.head_dim)
        return results.transpose(1, 2) + own * self._skip.unsqueeze(1), kept.view(state.shape)

    def finish(self, mixed: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """See ``Recurrence``."""
        # each: [T, num_heads * head_dim]
        result, gate = mixed.flatten(1), functional.silu(rest.float())
        if self._norm is None:
            return (result * gate).to(rest.dtype)
        if self._is_gated_last:
            return (self._normalised(result, self._norm) * gate).to(rest.dtype)
        return self._normalised(result * gate, self._norm).to(rest.dtype)

    def _normalised(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        # [T, num_groups, width of a group]
        groups = rows.view(len(rows), self._heads.num_groups, -1)
        scale = torch.rsqrt((groups * groups).mean(dim=-1, keepdim=True) + self._eps)
        return (groups * scale).flatten(1) * weight

    def _by_head(self, rows: torch.Tensor, width: int) -> torch.Tensor:
        """``[n, t, heads or groups * width]`` to ``[n * num_heads, t, width]``."""
        num_sequences, num_tokens, _ = rows.shape
        parts = rows.view(num_sequences, num_tokens, -1, width).transpose(1, 2)
        return parts.repeat_interleave(self._heads.num_heads // parts.shape[1], dim=1).reshape(-1, num_tokens, width)
