"""DeltaRule: the gated delta rule (Yang, Kautz and Hatamizadeh, "Gated Delta Networks", ICLR 2025).

A head's state is a matrix ``S [key_dim, value_dim]``, which maps a key to the value stored under it. A token with key
k, value v, decay g and rate b lets all entries fade and then moves the value under k towards v::

    S <- exp(g) * S
    S <- S + b * outer(k, v - k S)

Its result is ``q S``. Qwen3-Next and Qwen3.5 use it after a short convolution.
"""

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

# Keeps the length of a key or query from zero, as in the reference.
_LENGTH_EPS: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaHeads:
    """Heads of the gated delta rule.

    Attributes:
        num_key_heads: Heads of queries and of keys.
        num_value_heads: Heads of values, each with a state; a key head serves several that stand side by side.
        key_dim: Width of a query and of a key.
        value_dim: Width of a value.
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int

    @property
    def widths(self) -> tuple[int, int, int]:
        """Widths of all queries, all keys and all values of a token."""
        keys = self.num_key_heads * self.key_dim
        return keys, keys, self.num_value_heads * self.value_dim


class DeltaRule:
    """A convolution, the gated delta rule and a gated norm (satisfies ``Recurrence``).

    The layer's first product yields queries, keys, values, a rate and a decay for each value head, and the gate of the
    norm, in this order.

    Args:
        heads: The heads.
        taps: ``[taps, channels]`` float32 weight of the convolution of queries, keys and values.
        activation: Follows the convolution.
        decay: ``[num_value_heads]`` logarithm of each head's base of decay.
        decay_bias: ``[num_value_heads]`` added to a token's decay.
        norm: ``[value_dim]`` weight of the norm of each head's result.
        eps: Added to that norm's mean square.
        rate_scale: Factor of the rates. At 2 a token may turn the value under its key round (Grazzi et al. 2025,
            arXiv:2411.12537).
    """

    is_independent: Final = False

    def __init__(
        self,
        heads: DeltaHeads,
        *,
        taps: torch.Tensor,
        activation: Callable[[torch.Tensor], torch.Tensor],
        decay: torch.Tensor,
        decay_bias: torch.Tensor,
        norm: torch.Tensor,
        eps: float,
        rate_scale: float = 1.0,
    ) -> None:
        self._heads = heads
        self._taps = taps
        self._activation = activation
        self._decay_base = -decay.float().exp()
        self._decay_bias = decay_bias.float()
        self._norm = norm.float()
        self._eps = eps
        self._rate_scale = rate_scale
        self.shape = StateShape(
            window=taps.shape[0] - 1,
            width=taps.shape[1] + 2 * heads.num_value_heads,
            matrix=(heads.num_value_heads, heads.key_dim, heads.value_dim),
        )

    def split(self, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Recurrence``."""
        width = self.shape.width
        return projected[:, :width], projected[:, width:]

    def advance(
        self, inputs: torch.Tensor, state: torch.Tensor | None, num_kept: int, padding: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See ``Recurrence``."""
        assert state is not None, "the rule has a state"
        heads, (num_sequences, num_rows, _) = self._heads, inputs.shape
        num_tokens, channels = num_rows - self.shape.window, self._taps.shape[1]
        mixed = self._activation(causal_conv(inputs[:, :, :channels], self._taps, None))
        queries, keys, values = mixed.split(heads.widths, dim=-1)
        # each: [n, t, num_value_heads]
        rates, decays = inputs[:, self.shape.window :, channels:].float().chunk(2, dim=-1)
        rates, decays = rates.sigmoid(), self._decay_base * functional.softplus(decays + self._decay_bias)
        if self._rate_scale != 1.0:
            rates = rates * self._rate_scale
        if padding is not None:  # a rate of zero stores nothing, and a decay of exp(0) lets nothing fade
            real = (~padding).unsqueeze(-1)
            rates, decays = rates * real, decays * real
        tokens = MemoryTokens(
            _unit(self._by_head(queries, heads.key_dim)) * heads.key_dim**-0.5,
            _unit(self._by_head(keys, heads.key_dim)),
            self._by_head(values, heads.value_dim),
            rates.transpose(1, 2).reshape(-1, num_tokens),
            decays.transpose(1, 2).reshape(-1, num_tokens),
        )
        # [n * num_value_heads, t, value_dim]
        results, kept = advance_memory(state.flatten(0, 1), tokens, num_kept, corrects=True)
        results = results.view(num_sequences, heads.num_value_heads, num_tokens, heads.value_dim)
        return results.transpose(1, 2), kept.view(state.shape)

    def finish(self, mixed: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """See ``Recurrence``."""
        # [T, num_value_heads, value_dim]
        scale = torch.rsqrt((mixed * mixed).mean(dim=-1, keepdim=True) + self._eps)
        gated = mixed * scale * self._norm * functional.silu(rest.float().view(mixed.shape))
        return gated.flatten(1).to(rest.dtype)

    def _by_head(self, rows: torch.Tensor, width: int) -> torch.Tensor:
        """``[n, t, heads * width]`` to ``[n * num_value_heads, t, width]``."""
        num_sequences, num_tokens, _ = rows.shape
        # [n, heads, t, width]
        heads = rows.view(num_sequences, num_tokens, -1, width).transpose(1, 2)
        share = self._heads.num_value_heads // heads.shape[1]
        return heads.repeat_interleave(share, dim=1).reshape(-1, num_tokens, width)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows * torch.rsqrt((rows * rows).sum(dim=-1, keepdim=True) + _LENGTH_EPS)
