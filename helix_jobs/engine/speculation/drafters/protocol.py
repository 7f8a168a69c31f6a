"""What goes from the drafters to verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Draft:
    """Draft tokens of one decode.

    Whether a position is drafted may depend on the tokens before it and on the draft distribution, never on the token
    drafted there: otherwise sampled outputs would be biased.

    Attributes:
        token_ids: At most as many as the decode's depth.
        first_row: Its first row in the proposal's ``draft_probs``; None when its tokens were proposed with certainty (a
            greedy draft, or one that was looked up).
        num_awaited: Tokens that are on the device, see ``AwaitedDrafts``; ``token_ids`` is empty until they come down.
    """

    token_ids: tuple[int, ...]
    first_row: int | None = None
    num_awaited: int = 0

    @property
    def depth(self) -> int:
        """How many tokens are to be verified."""
        return len(self.token_ids) + self.num_awaited


NO_DRAFT_TOKENS: Final = Draft(())


@dataclass(frozen=True, slots=True)
class Proposal:
    """The drafts of one step.

    Attributes:
        drafts: One per decode of the schedule.
        draft_probs: ``[num_rows, vocab_size]`` processed fp32 distributions that sampled draft tokens were drawn from;
            None when all were proposed with certainty.
    """

    drafts: tuple[Draft, ...]
    draft_probs: torch.Tensor | None = None
