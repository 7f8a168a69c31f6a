"""Experts: a feed-forward of many parts, of which each token uses a few (Shazeer et al. 2017, arXiv:1701.06538)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from helix_jobs.engine.devices.shape_sizes import padded_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from helix_jobs.engine.model.feed_forward import FeedForward
    from helix_jobs.engine.model.router import Router, Routes
    from helix_jobs.engine.weights.linear import Linear
    from helix_jobs.engine.weights.router_linear import RouterLinear


@dataclass(frozen=True, slots=True)
class Experts:
    """The weighted sum of each token's experts, and of a shared part (satisfies ``FeedForward``).

    Tokens are grouped by expert: one product reads the weights of each expert in use, and of no other. Each token's
    results are summed in the order of its experts, so the sum does not depend on the rest of the batch.

    Attributes:
        router: Chooses each token's experts.
        experts: The experts.
        shared: Computes every token, and is added last; or None.
    """

    router: Router
    experts: tuple[FeedForward, ...]
    shared: FeedForward | None = None

    @property
    def top_k(self) -> int:
        """Experts of each token."""
        return self.router.rule.top_k

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``FeedForward``."""
        result = self.routed(hidden, self.router(hidden))
        return result if self.shared is None else self.shared.add_to(result, hidden)

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """See ``FeedForward``."""
        return residual + self(hidden)

    def routed(self, hidden: torch.Tensor, routes: Routes) -> torch.Tensor:
        """The weighted sum of each token's experts alone, ``[T, hidden_size]``; it is summed in float32."""
        groups = group_by_expert(routes.experts.numpy(), len(self.experts))
        indices = torch.from_numpy(np.concatenate((groups.tokens, groups.places))).to(hidden.device)
        tokens, *places = indices.split((len(groups.tokens), *(len(hidden),) * self.top_k))
        # each: [rows of a group, hidden_size]
        parts = hidden.index_select(0, tokens).split(groups.counts)
        # [rows of all groups, hidden_size]
        results = torch.cat([self.experts[index](part) for index, part in zip(groups.experts, parts, strict=True)])
        # each: [T, 1]
        weights = routes.weights.to(hidden.device).split(1, dim=1)
        total: torch.Tensor = results.index_select(0, places[0]).float() * weights[0]
        for place, weight in zip(places[1:], weights[1:], strict=True):
            total = total + results.index_select(0, place).float() * weight
        return total.to(hidden.dtype)

    def linears(self) -> tuple[Linear, ...]:
        """See ``FeedForward``. The router's product is not among them: it keeps its form."""
        shared = () if self.shared is None else self.shared.linears()
        return (*(linear for expert in self.experts for linear in expert.linears()), *shared)

    def with_linears(self, change: Callable[[Linear], Linear]) -> Experts:
        """See ``FeedForward``."""
        changed = self if self.shared is None else replace(self, shared=self.shared.with_linears(change))
        return changed.with_experts(lambda expert: expert.with_linears(change))

    def with_experts(self, change: Callable[[FeedForward], FeedForward]) -> Experts:
        """The same with ``change`` applied to every expert."""
        return replace(self, experts=tuple(change(expert) for expert in self.experts))


@dataclass(frozen=True, slots=True)
class SwitchedFeedForward:
    """A feed-forward times a factor of each token, ``sigmoid(gate)`` (satisfies ``FeedForward``).

    Attributes:
        inner: The feed-forward.
        gate: From a token to one number.
    """

    inner: FeedForward
    gate: RouterLinear

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``FeedForward``."""
        # [T, 1]; on the host and in double, because torch computes the last elements of a tensor by another exponential
        # function.
        factor = torch.sigmoid(self.gate(hidden).cpu().double()).to(hidden.dtype).to(hidden.device)
        return self.inner(hidden) * factor

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """See ``FeedForward``."""
        return residual + self(hidden)

    def linears(self) -> tuple[Linear, ...]:
        """See ``FeedForward``."""
        return self.inner.linears()

    def with_linears(self, change: Callable[[Linear], Linear]) -> SwitchedFeedForward:
        """See ``FeedForward``."""
        return replace(self, inner=self.inner.with_linears(change))


@dataclass(frozen=True, slots=True)
class ExpertGroups:
    """Tokens grouped by expert.

    Attributes:
        experts: The experts in use, ascending.
        counts: Rows of each one's group, padding included.
        tokens: The token of each row, group by group; padding repeats a group's last token.
        places: ``[top_k * T]`` the row in which each expert of each token stands: first that of each token's first
            expert, then that of its second.
    """

    experts: list[int]
    counts: list[int]
    tokens: NDArray[np.int64]
    places: NDArray[np.int64]


def group_by_expert(choice: NDArray[np.int64], num_experts: int) -> ExpertGroups:
    """Group tokens by expert. Groups are padded to one of few sizes, see ``padded_rows``.

    Args:
        choice: ``[T, top_k]`` the experts of each token.
        num_experts: Number of experts.
    """
    flat = choice.reshape(-1)
    counts = np.bincount(flat, minlength=num_experts)
    used = np.flatnonzero(counts)
    counts = counts[used]
    padded = np.asarray([padded_rows(count) for count in counts.tolist()], dtype=np.int64)
    order = np.argsort(flat, kind="stable")
    # Where each group starts among the rows, and among the chosen experts in their order.
    row_starts, starts = np.cumsum(padded) - padded, np.cumsum(counts) - counts
    places = np.empty(len(flat), dtype=np.int64)
    places[order] = np.arange(len(flat)) + np.repeat(row_starts - starts, counts)
    within = np.arange(int(padded.sum())) - np.repeat(row_starts, padded)
    chosen = np.repeat(starts, padded) + np.minimum(within, np.repeat(counts - 1, padded))
    places = np.ascontiguousarray(places.reshape(choice.shape).T).reshape(-1)
    return ExpertGroups(used.tolist(), padded.tolist(), order[chosen] // choice.shape[1], places)


def most_rows(num_chosen: int, num_experts: int) -> int:
    """The most rows that groups of ``num_chosen`` tokens have together: ``padded_rows`` adds one, or a quarter."""
    return num_chosen * 5 // 4 + min(num_chosen, num_experts)
