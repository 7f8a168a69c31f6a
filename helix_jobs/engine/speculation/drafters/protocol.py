"""Drafter: the interface of drafters, and the drafts and proposals that they hand to verification."""

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
    """Proposes the next tokens of sequences. A draft affects how fast an answer comes, never the answer."""

    @property
    def name(self) -> str:
        """Its name in settings, results and a step's reason."""

    def observe(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Learn how many tokens of a sequence's latest draft were verified and how many accepted, forced ones apart."""

    def forget(self, sequence: Sequence) -> None:
        """Drop a sequence that has ended; keep what other requests can use. Unknown sequences are ignored."""

    def clear(self, blocks: SequenceOf[int]) -> None:
        """Zero these blocks of its own cache, if it has one."""


class FindingDrafter(Drafter, Protocol):
    """*Finds* its drafts, at negligible cost.

    It is asked before depths are chosen and says how likely each token is to be accepted; the beginning of each draft
    is then verified. Its drafts for a sampled request must depend on that request alone, since another draft uses the
    request's random numbers differently.
    """

    def propose(self, turns: SequenceOf[Turn]) -> None:
        """Set ``draft``, of at most ``depth`` tokens behind the forced ones, on each turn for which it finds one."""


class ComputingDrafter(Drafter, Protocol):
    """*Computes* its drafts, in passes that take time.

    Depths are chosen first, by the cost of passes and its acceptance; it drafts exactly that many tokens.
    """

    def propose(self, turns: SequenceOf[Turn], prefills: SequenceOf[Turn] = ()) -> Proposal:
        """Draft ``depth`` tokens for each turn, behind the forced ones.

        Args:
            turns: Decodes with a depth above 0.
            prefills: Prompt chunks of the same step to keep up with.
        """

    def missing_tokens(self, sequence: Sequence) -> int:
        """Tokens before a sequence's last one that it must compute before it can draft."""


@dataclass(frozen=True, slots=True)
class Drafters:
    """The drafters of an engine: those that find drafts, in order of preference, and the one that computes, if any."""

    finding: tuple[FindingDrafter, ...] = ()
    computing: ComputingDrafter | None = None

    @property
    def all(self) -> tuple[Drafter, ...]:
        """All drafters."""
        return self.finding if self.computing is None else (*self.finding, self.computing)


@dataclass(frozen=True, slots=True)
class Draft:
    """Draft tokens of one decode, behind those that its grammar forces.

    Whether to draft a position may depend on the tokens before it and on the draft distribution, never on the token
    drafted there: sampled outputs would be biased.

    Attributes:
        token_ids: At most as many as the turn's depth.
        first_row: Its first row in the proposal's ``draft_probs``; None when its tokens were proposed with certainty (a
            greedy or a found draft).
        num_awaited: Tokens still on the device, see ``AwaitedDrafts``; ``token_ids`` is empty until they arrive.
        confidence: For a found draft: the estimated probability that each token is accepted, given that those before it
            are.
        is_trusted: For a found draft: whether it is better than a computed one at a fixed depth. Must not depend on
            anything learned from other requests.
    """

    token_ids: tuple[int, ...]
    first_row: int | None = None
    num_awaited: int = 0
    confidence: tuple[float, ...] = ()
    is_trusted: bool = False

    @property
    def depth(self) -> int:
        """Number of tokens to verify."""
        return len(self.token_ids) + self.num_awaited

    def first(self, depth: int) -> Draft:
        """The first ``depth`` tokens of a found draft."""
        if depth >= len(self.token_ids):
            return self
        return replace(self, token_ids=self.token_ids[:depth], confidence=self.confidence[:depth])


NO_DRAFT_TOKENS: Final = Draft(())


@dataclass(frozen=True, slots=True)
class Proposal:
    """The result of drafting for a step, apart from the drafts themselves, which are in the turns.

    Attributes:
        draft_probs: ``[num_rows, vocab_size]`` processed fp32 distributions that sampled draft tokens were drawn from;
            None when all were proposed with certainty.
        passes: Tokens of each pass that was run to compute drafts.
        seconds: Time of these passes.
        has_waited: Whether the host waited for drafts from the device, which is then idle.
        awaited: Passes to run with the target's; the drafts have no tokens until then.
    """

    draft_probs: torch.Tensor | None = None
    passes: tuple[int, ...] = ()
    seconds: float = 0.0
    has_waited: bool = False
    awaited: AwaitedDrafts | None = None


NOTHING_COMPUTED: Final = Proposal()
