"""Drafter: what proposes tokens, and what goes from drafters to verification."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    import torch

    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.speculation.drafters.awaited_drafts import AwaitedDrafts
    from helix_jobs.engine.speculation.turn import Turn


class Drafter(Protocol):
    """Proposes what sequences may go on with. A draft decides how fast an answer comes, never which.

    A drafter of this kind *finds* its drafts: they cost nothing worth planning for. It is asked before depths are
    chosen, says how likely each token is to be accepted, and of each draft a beginning is verified. What it proposes
    for a sampled request must depend on that request alone: another draft is another use of its random numbers.
    """

    @property
    def name(self) -> str:
        """What settings, results and a step's reason call it."""

    def propose(self, turns: SequenceOf[Turn]) -> Proposal | None:
        """Give decodes a ``draft`` of at most ``depth`` tokens; a turn that it has nothing for keeps none."""

    def observe(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Learn what became of the latest draft for a sequence: so many tokens were verified, so many accepted."""

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended: keep what others can use of it, and drop the rest. Unknown ones are ignored."""

    def clear(self, blocks: SequenceOf[int]) -> None:
        """Set these blocks of its own cache, if it has one, back to zero."""


class ComputingDrafter(Drafter, Protocol):
    """*Computes* its drafts, in passes that take time.

    Depths are chosen first, by what passes cost and how often its tokens were accepted; it drafts exactly as many.
    """

    def propose(self, turns: SequenceOf[Turn], prefills: SequenceOf[Turn] = ()) -> Proposal:
        """Draft for each turn as many tokens as its depth says.

        Args:
            turns: Decodes with a depth above 0.
            prefills: Prompt chunks of the same step to keep up with.
        """

    def missing_tokens(self, sequence: Sequence) -> int:
        """Tokens before a sequence's last that it must compute before it can draft."""


@dataclass(frozen=True, slots=True)
class Drafters:
    """Who drafts: those that find drafts, the preferred one first, and the one that computes them, if any."""

    finding: tuple[Drafter, ...] = ()
    computing: ComputingDrafter | None = None

    @property
    def all(self) -> tuple[Drafter, ...]:
        """Every one of them."""
        return self.finding if self.computing is None else (*self.finding, self.computing)


@dataclass(frozen=True, slots=True)
class Draft:
    """Draft tokens of one decode.

    Whether a position is drafted may depend on the tokens before it and on the draft distribution, never on the token
    drafted there: otherwise sampled outputs would be biased.

    Attributes:
        token_ids: At most as many as the turn's depth.
        first_row: Its first row in the proposal's ``draft_probs``; None when its tokens were proposed with certainty (a
            greedy draft, or one that was found).
        num_awaited: Tokens that are on the device, see ``AwaitedDrafts``; ``token_ids`` is empty until they come down.
        confidence: Of a draft that was found: the estimated probability that each token is accepted, given that those
            before it are.
        is_trusted: Of a draft that was found: whether, at a fixed depth, it is better than a computed one. It must not
            rest on anything learned from other requests.
    """

    token_ids: tuple[int, ...]
    first_row: int | None = None
    num_awaited: int = 0
    confidence: tuple[float, ...] = ()
    is_trusted: bool = False

    @property
    def depth(self) -> int:
        """How many tokens are to be verified."""
        return len(self.token_ids) + self.num_awaited

    def first(self, depth: int) -> Draft:
        """The beginning of a draft that was found."""
        if depth >= len(self.token_ids):
            return self
        return replace(self, token_ids=self.token_ids[:depth], confidence=self.confidence[:depth])


NO_DRAFT_TOKENS: Final = Draft(())


@dataclass(frozen=True, slots=True)
class Proposal:
    """What drafting for a step left beside the drafts themselves, which stand in the turns.

    Attributes:
        draft_probs: ``[num_rows, vocab_size]`` processed fp32 distributions that sampled draft tokens were drawn from;
            None when all were proposed with certainty.
        passes: Tokens of each pass that was run to compute drafts.
        seconds: Time of these passes.
        has_waited: Whether drafts came down from the device, which then has nothing left to do.
        awaited: Passes that are to run with the target's; then the drafts lack their tokens.
    """

    draft_probs: torch.Tensor | None = None
    passes: tuple[int, ...] = ()
    seconds: float = 0.0
    has_waited: bool = False
    awaited: AwaitedDrafts | None = None


NOTHING_COMPUTED: Final = Proposal()
