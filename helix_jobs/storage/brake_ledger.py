"""Ledger: what the brakes of a batch count from, and how long the batch has run.

Time is added up from one look of a worker to the next, while jobs of the batch run: a pause, a night without a worker
and a worker's rest do not count.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.brakes import Spent
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.storage.records import BatchStatus

# Nobody looked for longer: then nobody knows whether the batch ran.
_LONGEST_GAP: Final = 60.0


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a batch's brakes count from, and how long it has run.

    Attributes:
        tokens: Tokens that count no more.
        ended: Ended jobs that count no more.
        failed: Failed jobs that count no more.
        seconds: How long it has run since.
        seen_at: When jobs of it were last seen running; None if none ran at the last look.
    """

    tokens: int = 0
    ended: int = 0
    failed: int = 0
    seconds: float = 0.0
    seen_at: datetime | None = None

    @classmethod
    def begin(cls, status: BatchStatus) -> Ledger:
        """The ledger of a batch that goes on after a brake: what it has spent so far counts no more."""
        return cls(computed(status), status.processed, status.counts[JobState.FAILED])

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any] | None) -> Ledger:
        """The ledger of a stored batch. One that somebody changed by hand begins anew."""
        if not stored:
            return cls()
        try:
            seen = stored.get("seen_at")
            return cls(
                int(stored["tokens"]),
                int(stored["ended"]),
                int(stored["failed"]),
                float(stored["seconds"]),
                None if seen is None else datetime.fromisoformat(seen).astimezone(UTC),
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            return cls()

    def to_dict(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self) | {"seen_at": None if self.seen_at is None else self.seen_at.isoformat()}

    @property
    def counts(self) -> tuple[int, int, int]:
        """What it holds beside time."""
        return self.tokens, self.ended, self.failed

    def look(self, status: BatchStatus, now: datetime) -> Ledger:
        """The ledger after a look at the batch. A retry takes failures back, so less may count than before."""
        seconds, runs = self.seconds, status.counts[JobState.RUNNING] > 0
        if runs and self.seen_at is not None and 0 < (gap := (now - self.seen_at).total_seconds()) <= _LONGEST_GAP:
            seconds += gap
        return Ledger(
            min(self.tokens, computed(status)),
            min(self.ended, status.processed),
            min(self.failed, status.counts[JobState.FAILED]),
            seconds,
            now if runs else None,
        )

    def spent(self, status: BatchStatus) -> Spent:
        """What counts, after ``look`` at the same status."""
        return Spent(
            tokens=computed(status) - self.tokens,
            ended=status.processed - self.ended,
            failed=status.counts[JobState.FAILED] - self.failed,
            seconds=self.seconds,
        )


def computed(status: BatchStatus) -> int:
    """Tokens computed for the batch's answers: what the prefix cache had cost nothing."""
    return status.prompt_tokens - status.cached_prompt_tokens + status.completion_tokens
