"""What goes from the drafters to verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

    from helix_jobs.engine.speculation.drafters.awaited_drafts import AwaitedDrafts


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
    """What drafting for a step left beside the drafts themselves, which stand in the turns.

    Attributes:
        draft_probs: ``[num_rows, vocab_size]`` processed fp32 distributions that sampled draft tokens were drawn from;
            None when all were proposed with certainty.
        passes: Tokens of each pass that the draft model has run.
        seconds: Time of these passes.
        has_waited: Whether drafts came down from the device, which then has nothing left to do.
        awaited: The draft model's passes, if they are to run with the target's; then the drafts lack their tokens.
    """

    draft_probs: torch.Tensor | None = None
    passes: tuple[int, ...] = ()
    seconds: float = 0.0
    has_waited: bool = False
    awaited: AwaitedDrafts | None = None


NOTHING_COMPUTED: Final = Proposal()
