"""The Drafter protocol and what goes through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from helix_jobs.engine.scheduler import Schedule


@dataclass(frozen=True, slots=True)
class Proposal:
    """Draft tokens of one step.

    Attributes:
        token_ids: One tuple per decode of the schedule, at most its depth long.
        draft_probs: ``[sum over sampled decodes of their draft tokens, vocab_size]`` processed fp32 distributions the
            tokens of sampled requests were drawn from, in schedule order; None when they were proposed with certainty.
    """

    token_ids: tuple[tuple[int, ...], ...]
    draft_probs: torch.Tensor | None = None


class Drafter(Protocol):
    """Proposes draft tokens for the decodes of a step.

    Whether a position is drafted may depend on the tokens before it and on the draft distribution, never on the token
    drafted there: otherwise sampled outputs would be biased.
    """

    def propose(self, schedule: Schedule) -> Proposal:
        """Draft for the schedule's decodes, and keep up with its prefills. Called once for every step."""

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Set cache blocks back to zero; a drafter without a cache has nothing to do."""
