"""The plan of one step: which sequences take part, with how many tokens, and what is left of the step's limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from helix_jobs.engine.schedule.admission import Candidate
    from helix_jobs.engine.schedule.sequence import Sequence

# The part of a step's prompt tokens that bulk prompts keep while urgent ones are computed: one in so many. Trade-off: a
# larger part lets bulk prompts go on faster, but each of its tokens makes the step, and so the urgent answer, later.
_BULK_PART: Final = 8


@dataclass(frozen=True, slots=True)
class Decode:
    """One sequence verifies at most ``depth`` draft tokens behind its last token."""

    sequence: Sequence
    depth: int

    @property
    def length(self) -> int:
        """Tokens whose keys and values the cache holds after the step."""
        return len(self.sequence) + self.depth


@dataclass(frozen=True, slots=True)
class Prefill:
    """One sequence computes its next ``num_tokens`` known tokens; ``emits`` if the last of them yields a token.

    ``scored`` are the positions among them whose logits its prompt's log probabilities need. ``ends_prompt`` if a fresh
    prompt is computed whole.
    """

    sequence: Sequence
    num_tokens: int
    emits: bool
    scored: range
    ends_prompt: bool

    @property
    def length(self) -> int:
        """Tokens whose keys and values the cache holds after the step."""
        return self.sequence.num_computed + self.num_tokens


@dataclass(frozen=True, slots=True)
class Schedule:
    """One step. Every sequence in it already has the blocks that the step will write."""

    decodes: tuple[Decode, ...]
    prefills: tuple[Prefill, ...]

    @property
    def num_sequences(self) -> int:
        """Sequences in the step."""
        return len(self.decodes) + len(self.prefills)


@dataclass(slots=True)
class Budget:
    """What is left of a step: prompt tokens to compute, and rows of logits for prompts' log probabilities."""

    tokens: int
    rows: int

    def spend(self, prefill: Prefill) -> None:
        """Count a part of a prompt."""
        self.tokens -= prefill.num_tokens
        self.rows -= len(prefill.scored)

    def affordable(self, candidates: list[Candidate]) -> list[Candidate]:
        """Those that can begin. Without rows, plain requests pass those whose prompts are to be scored."""
        return candidates if self.rows > 0 else [one for one in candidates if one.sequence.prompt_logprobs is None]


@dataclass(frozen=True, slots=True)
class Budgets:
    """A step's limits, shared between urgent prompts and those of bulk work.

    While an urgent prompt is computed, bulk prompts keep a small part of the step: enough that they never stand still,
    and little enough that the urgent answer hardly waits for them.
    """

    urgent: Budget
    bulk: Budget

    @classmethod
    def of(cls, tokens: int, rows: int, *, is_shared: bool) -> Self:
        """Divide a step's limits.

        Args:
            tokens: Prompt tokens of the step.
            rows: Rows of logits of the step.
            is_shared: Urgent prompts and bulk ones are to be computed.
        """
        if not is_shared:
            whole = Budget(tokens, rows)
            return cls(whole, whole)
        bulk = Budget(_part(tokens), _part(rows))
        return cls(Budget(tokens - bulk.tokens, rows - bulk.rows), bulk)

    def for_(self, sequence: Sequence) -> Budget:
        """The part that a sequence's prompt may use."""
        return self.urgent if sequence.is_urgent else self.bulk


def _part(whole: int) -> int:
    return min(max(1, whole // _BULK_PART), whole - 1)
