"""What jobs in slots tell: which have one, how fast they come on, and what those took that ended last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from helix_jobs.storage.glimpses import Glimpse

# Of these many, those that ended last, the time of a token is taken.
LATEST: Final = 200
_DEFAULT_MAX_TOKENS: Final = SamplingParams().max_tokens


@dataclass(frozen=True, slots=True)
class SlotTime:
    """Sums over jobs that have ended, with a slot for each of their answers.

    Attributes:
        jobs: How many there are.
        answers: Of all of them.
        tokens: Of all these answers.
        prompt_tokens: Prompt tokens that were computed for them.
        seconds: In their slots, prompts and all.
    """

    jobs: int
    answers: int
    tokens: int
    prompt_tokens: int
    seconds: float

    @classmethod
    def of(cls, ended: Iterable[Glimpse]) -> SlotTime:
        """Of those that ended last. Each further answer of a job is taken to be like its first."""
        known = [one for one in ended if one.tokens and one.total_seconds and one.finished_at is not None]
        latest = sorted(known, key=lambda one: str(one.finished_at))[-LATEST:]
        return cls(
            jobs=len(latest),
            answers=sum(one.choices for one in latest),
            tokens=sum(one.choices * (one.tokens or 0) for one in latest),
            prompt_tokens=sum(one.computed_tokens or 0 for one in latest),
            seconds=sum(one.choices * (one.total_seconds or 0.0) for one in latest),
        )

    @property
    def token_seconds(self) -> float:
        """Seconds of a token, the prompts of others between two of them included; 0 without jobs."""
        return self.seconds / self.tokens if self.tokens else 0.0

    @property
    def answer_seconds(self) -> float:
        """Seconds of an answer; 0 without jobs."""
        return self.seconds / self.answers if self.answers else 0.0


@dataclass(frozen=True, slots=True)
class Slots:
    """Answers that are being worked at.

    Attributes:
        running: The job of each answer that has a slot.
        claimed: The job of each answer that a worker has claimed ahead, which waits for one.
    """

    running: Sequence[Glimpse]
    claimed: Sequence[Glimpse]

    @classmethod
    def of(cls, running: Iterable[Glimpse], slots: int) -> Slots:
        """Of the jobs that run: those that were claimed first have the slots."""
        ordered = sorted(running, key=lambda one: (str(one.claimed_at), one.id))
        answers = [one for one in ordered for _ in range(one.choices)]
        return cls(answers[:slots], answers[slots:])

    def done_tokens(self, now: datetime, time: SlotTime, token_seconds: float) -> list[int]:
        """Tokens that each running answer has by now, as far as its time tells.

        Args:
            now: The time.
            time: Of jobs that have ended.
            token_seconds: Seconds of a token, where none has ended.
        """
        # How long an answer was claimed before it got its slot.
        wait = len(self.claimed) / max(len(self.running), 1) * time.answer_seconds
        each = time.token_seconds or token_seconds
        return [_tokens(one, now, wait, each) for one in self.running]


def limit(one: Glimpse) -> int:
    """Most tokens of each of the job's answers."""
    return _DEFAULT_MAX_TOKENS if one.max_tokens is None else one.max_tokens


def _tokens(one: Glimpse, now: datetime, wait: float, token_seconds: float) -> int:
    if one.claimed_at is None or token_seconds <= 0:
        return 0
    return max(0, min(int(((now - one.claimed_at).total_seconds() - wait) / token_seconds), limit(one) - 1))
