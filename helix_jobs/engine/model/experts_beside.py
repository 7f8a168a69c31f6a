"""ExpertsBeside: a feed-forward that computes every token, and experts beside it (Gemma 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from helix_jobs.engine.model.experts import Experts

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from helix_jobs.engine.model.feed_forward import FeedForward
    from helix_jobs.engine.model.norms import Norm
    from helix_jobs.engine.weights.linear import Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsBeside:
    """The sum of both, each between norms of its own (satisfies ``FeedForward``).

    Reads the residual itself, as the router does.

    Attributes:
        dense: Computes every token.
        experts: Of which each token uses a few.
        dense_norm: Norm of what ``dense`` reads.
        dense_out_norm: Norm of its result.
        experts_norm: Norm of what experts read.
        experts_out_norm: Norm of their sum.
    """

    dense: FeedForward
    experts: Experts
    dense_norm: Norm
    dense_out_norm: Norm
    experts_norm: Norm
    experts_out_norm: Norm

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``FeedForward``."""
        dense = self.dense_out_norm(self.dense(self.dense_norm(hidden)))
        chosen = self.experts.routed(self.experts_norm(hidden), self.experts.router(hidden))
        return dense + self.experts_out_norm(chosen)

    def add_to(self, residual: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """See ``FeedForward``."""
        return residual + self(hidden)

    def linears(self) -> tuple[Linear, ...]:
        """See ``FeedForward``."""
        return *self.dense.linears(), *self.experts.linears()

    def with_linears(self, change: Callable[[Linear], Linear]) -> ExpertsBeside:
        """See ``FeedForward``."""
        return replace(self, dense=self.dense.with_linears(change), experts=self.experts.with_linears(change))

    def with_norms(self, change: Callable[[Norm], Norm]) -> ExpertsBeside:
        """The same with ``change`` applied to every norm of it."""
        return replace(
            self,
            dense_norm=change(self.dense_norm),
            dense_out_norm=change(self.dense_out_norm),
            experts_norm=change(self.experts_norm),
            experts_out_norm=change(self.experts_out_norm),
        )


def experts_of(feed_forward: FeedForward) -> Experts | None:
    """The experts in a feed-forward, if any."""
    if isinstance(feed_forward, ExpertsBeside):
        return feed_forward.experts
    return feed_forward if isinstance(feed_forward, Experts) else None
