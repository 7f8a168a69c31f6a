"""Turn: one sequence's part of a step, from schedule to verdict. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.speculation.drafters.protocol import NO_DRAFT_TOKENS

if TYPE_CHECKING:
    from helix_jobs.engine.sampling.logprobs import LogprobRows
    from helix_jobs.engine.sampling.verification import Verdict
    from helix_jobs.engine.schedule.sequence import Sequence
    from helix_jobs.engine.schedule.step_plan import Schedule
    from helix_jobs.engine.speculation.drafters.protocol import Draft, Drafter


NO_POSITIONS: Final = range(0)


@dataclass(slots=True, eq=False)
class Turn:
    """What one sequence does in a step. Each stage of the step reads what the stages before it have filled in.

    Attributes:
        sequence: The sequence.
        start: Position of the first token to compute.
        num_known: Tokens to compute that are verified: the last one of a decode, the prompt chunk of a prefill.
        is_decode: Whether the sequence decodes, and so may draft.
        emits: Whether the step yields a token of it: it decodes, or its fresh prompt ends in this step.
        ceiling: Draft tokens to verify at most.
        forced: The draft tokens behind the known tokens that the sequence's grammar forces.
        depth: Draft tokens that a drafter is asked for, behind the forced ones.
        drafter: The drafter of ``draft``; None where nothing is drafted but what is forced.
        draft: The draft tokens behind the forced ones.
        first_row: Its first row of logits, counted among the greedy rows if ``is_greedy``, else among the others.
        verdict: The verdict; None before verification, and where logits are not finite.
        logprobs: Log probabilities of the verdict's tokens; None where they are not asked for.
        scored: Positions whose logits the prompt's log probabilities need.
        first_scored_row: The first of their rows of logits, counted among the rows for the host.
        prompt_logprobs: Log probabilities of the tokens behind these positions; None where logits are not finite.
    """

    sequence: Sequence
    start: int
    num_known: int
    is_decode: bool
    emits: bool
    ceiling: int = 0
    forced: tuple[int, ...] = ()
    depth: int = 0
    drafter: Drafter | None = None
    draft: Draft = NO_DRAFT_TOKENS
    first_row: int = 0
    verdict: Verdict | None = None
    logprobs: LogprobRows | None = None
    scored: range = NO_POSITIONS
    first_scored_row: int = 0
    prompt_logprobs: LogprobRows | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the device chooses its tokens by argmax, and the host needs no more; else it gets the logits."""
        return self.sequence.takes_argmax and self.sequence.logprobs is None

    @property
    def num_drafted(self) -> int:
        """Draft tokens to verify, those still on the device included."""
        return len(self.forced) + self.draft.depth

    @property
    def draft_ids(self) -> tuple[int, ...]:
        """The draft tokens to verify, without those still on the device."""
        return self.forced + self.draft.token_ids

    @property
    def end(self) -> int:
        """Position behind the last known token: where drafts begin."""
        return self.start + self.num_known

    @property
    def rows(self) -> range:
        """Its rows of logits: one for each draft token, and one more."""
        return range(self.first_row, self.first_row + self.num_drafted + 1)


def turns_of(schedule: Schedule) -> list[Turn]:
    """One turn for each sequence of a step."""
    decodes = [
        Turn(
            decode.sequence,
            start=decode.sequence.num_computed,
            num_known=1,
            is_decode=True,
            emits=True,
            ceiling=decode.depth,
        )
        for decode in schedule.decodes
    ]
    prefills = [
        Turn(
            prefill.sequence,
            start=prefill.sequence.num_computed,
            num_known=prefill.num_tokens,
            is_decode=False,
            emits=prefill.emits,
            scored=prefill.scored,
        )
        for prefill in schedule.prefills
    ]
    return decodes + prefills
