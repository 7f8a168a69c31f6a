"""A linear memory: a matrix that maps keys to values, fades, and is read by queries.

A head's memory is ``S [key_dim, value_dim]``. A token with key k, value v, decay g and rate b lets all entries fade,
and then adds to them::

    S <- exp(g) * S
    S <- S + b * outer(k, v)          or, corrected:    S <- S + b * outer(k, v - k S)

Its result is ``q S``. The first form is Mamba-2's (Dao and Gu, "Transformers are SSMs", ICML 2024), the second the
gated delta rule (Yang, Kautz and Hatamizadeh, "Gated Delta Networks", ICLR 2025). Both are computed in chunks, as these
papers do: within a chunk as masked products of queries and keys, between chunks by the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

# Tokens that are computed together. Trade-off: a longer chunk needs fewer calls, and its triangle more products.
_CHUNK: Final = 64


@dataclass(frozen=True, slots=True)
class MemoryTokens:
    """Tokens of heads side by side; all tensors are float32.

    Attributes:
        queries: ``[h, t, key_dim]``
        keys: ``[h, t, key_dim]``
        values: ``[h, t, value_dim]``
        rates: ``[h, t]`` how much of a value is stored.
        decays: ``[h, t]`` logarithms, none above zero.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    rates: torch.Tensor
    decays: torch.Tensor

    def __len__(self) -> int:
        return self.keys.shape[1]

    def rows(self, start: int, end: int) -> MemoryTokens:
        """Tokens ``start`` to ``end``."""
        parts = (self.queries, self.keys, self.values, self.rates, self.decays)
        return MemoryTokens(*(part[:, start:end] for part in parts))


def advance_memory(
    state: torch.Tensor, tokens: MemoryTokens, num_kept: int, *, corrects: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read and write a memory token by token, computed chunk by chunk.

    Args:
        state: ``[h, key_dim, value_dim]`` before the first token.
        tokens: The tokens.
        num_kept: The state behind this many tokens is returned.
        corrects: Whether a token stores only what the memory does not yet hold under its key.

    Returns:
        Results ``[h, t, value_dim]``, and the state behind the first ``num_kept`` tokens.
    """
    results: list[torch.Tensor] = []
    kept, start = state, 0
    while start < len(tokens):
        end = min(start + _CHUNK, len(tokens))
        if start < num_kept < end < len(tokens):
            end = num_kept  # the next chunk begins with the kept state
        chunk = _Chunk(state, tokens.rows(start, end), corrects=corrects)
        results.append(chunk.results())
        if start < num_kept <= end:
            kept = chunk.state_behind(num_kept - start)
        if end < len(tokens):
            state = kept if end == num_kept else chunk.state_behind(end - start)
        start = end
    return (results[0] if len(results) == 1 else torch.cat(results, dim=1)), kept


class _Chunk:
    """Tokens that are computed together."""

    def __init__(self, state: torch.Tensor, tokens: MemoryTokens, *, corrects: bool) -> None:
        self._state = state
        self._tokens = tokens
        # [h, t]: the decay from the chunk's begin to each token
        self._past = tokens.decays.cumsum(dim=1)
        # [h, t, t]: the decay from one token to a later one. The other half would overflow.
        self._fading = (self._past.unsqueeze(2) - self._past.unsqueeze(1)).tril().exp().tril()
        # [h, t, 1]
        self._faded = self._past.exp().unsqueeze(2)
        # [h, t, value_dim]: what each token stores
        self._stored = self._corrected() if corrects else tokens.values * tokens.rates.unsqueeze(2)

    def results(self) -> torch.Tensor:
        """Of each token: ``[h, t, value_dim]``."""
        tokens = self._tokens
        # [h, t, t]
        seen = torch.bmm(tokens.queries, tokens.keys.transpose(1, 2)) * self._fading
        return self._faded * torch.bmm(tokens.queries, self._state) + torch.bmm(seen, self._stored)

    def state_behind(self, count: int) -> torch.Tensor:
        """The state behind the first ``count`` tokens, at least one."""
        last = self._past[:, count - 1 : count]
        # [h, count, 1]
        left = (last - self._past[:, :count]).exp().unsqueeze(2)
        stored = (self._tokens.keys[:, :count] * left).transpose(1, 2)
        return torch.baddbmm(self._state * last.exp().unsqueeze(2), stored, self._stored[:, :count])

    def _corrected(self) -> torch.Tensor:
        """What each token stores: it depends on what those before it store, a triangular system of equations."""
        tokens, rates = self._tokens, self._tokens.rates.unsqueeze(2)
        missing = (tokens.values - self._faded * torch.bmm(tokens.keys, self._state)) * rates
        if len(tokens) == 1:
            return missing
        # [h, t, t]
        overlap = (torch.bmm(tokens.keys, tokens.keys.transpose(1, 2)) * self._fading * rates).tril(-1)
        stored: torch.Tensor = torch.linalg.solve_triangular(overlap, missing, upper=False, unitriangular=True)
        return stored
