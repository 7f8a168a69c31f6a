"""BulkWork: jobs that keep every batch slot of a worker busy for as long as something is measured beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.bench.prompts import task
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.client.client import HelixClient
    from helix_jobs.storage.records import BatchStatus

# Jobs of a batch for each slot, and how few are left when another one is handed in.
_PER_SLOT: Final = 60
_LEFT_PER_SLOT: Final = 40


class BulkWork:
    """Batches, one behind the other.

    Args:
        client: Hands them in.
        slots: The worker's.
        max_tokens: New tokens of each job.
    """

    def __init__(self, client: HelixClient, slots: int, max_tokens: int) -> None:
        self._client = client
        self._slots = slots
        self._max_tokens = max_tokens
        self._batches: list[str] = []

    def fill(self) -> None:
        """Hand in another batch if the work would run out."""
        if self._left() < self._slots * _LEFT_PER_SLOT:
            first = len(self._batches) * self._slots * _PER_SLOT
            lines = [
                {"prompt": task(number), "max_tokens": self._max_tokens, "ignore_eos": True}
                for number in range(first, first + self._slots * _PER_SLOT)
            ]
            self._batches.append(self._client.submit(lines).batch_id)

    def tokens(self) -> int:
        """Tokens of all jobs that have ended."""
        return sum(status.completion_tokens for status in self._statuses())

    def ended(self) -> int:
        """Jobs that have ended."""
        return sum(status.finished for status in self._statuses())

    def cancel(self) -> None:
        """End it."""
        for status in self._statuses():
            if not status.done:
                self._client.cancel(status.id)

    def _left(self) -> int:
        counts = [status.counts for status in self._statuses()]
        return sum(each[JobState.QUEUED] + each[JobState.RUNNING] for each in counts)

    def _statuses(self) -> Sequence[BatchStatus]:
        return [self._client.status(batch_id) for batch_id in self._batches]
