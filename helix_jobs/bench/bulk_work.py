"""BulkWork: jobs that keep every batch slot of a worker busy for as long as something is measured beside them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.bench.prompts import task
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helix_jobs.client.client import HelixClient
    from helix_jobs.storage.records import BatchStatus

# Jobs of a batch for each slot, and how few are left when another one is handed in.
_PER_SLOT: Final = 200
_LEFT_PER_SLOT: Final = 100
# Jobs that each slot has ended before anything is measured. The first ones of all slots begin at once, and so end at
# once: a short time has none of them or all.
_ENDED_PER_SLOT: Final = 3
_LOOK_SECONDS: Final = 1.0
_BEGIN_SECONDS: Final = 0.1


class BulkWork:
    """Batches, one behind the other.

    Args:
        client: Tells how they stand.
        slots: The worker's.
        max_tokens: New tokens of each job.
        hand_in: Hands in a batch of these requests, and returns its id for the client.
    """

    def __init__(
        self,
        client: HelixClient,
        slots: int,
        max_tokens: int,
        hand_in: Callable[[list[dict[str, Any]]], str],
    ) -> None:
        self._client = client
        self._slots = slots
        self._max_tokens = max_tokens
        self._hand_in = hand_in
        self._batches: list[str] = []

    def begin(self) -> None:
        """Hand in the first batch, and wait until every slot works as it does from then on."""
        while self._ended() < self._slots * _ENDED_PER_SLOT:
            self.keep_up(_BEGIN_SECONDS)

    def fill(self) -> None:
        """Hand in another batch if the work would run out."""
        if self._left() < self._slots * _LEFT_PER_SLOT:
            first = len(self._batches) * self._slots * _PER_SLOT
            requests: list[dict[str, Any]] = [
                {"prompt": task(number), "max_tokens": self._max_tokens, "ignore_eos": True}
                for number in range(first, first + self._slots * _PER_SLOT)
            ]
            self._batches.append(self._hand_in(requests))

    def keep_up(self, seconds: float) -> None:
        """Wait so long, and let the work not run out meanwhile."""
        deadline = time.perf_counter() + seconds
        while True:
            self.fill()
            left = deadline - time.perf_counter()
            if left <= 0:
                return
            time.sleep(min(_LOOK_SECONDS, left))

    def tokens(self) -> int:
        """Tokens of all jobs that have ended."""
        return sum(status.completion_tokens for status in self._statuses())

    def cancel(self) -> None:
        """End it."""
        for status in self._statuses():
            if not status.done:
                self._client.cancel(status.id)

    def _ended(self) -> int:
        return sum(status.finished for status in self._statuses())

    def _left(self) -> int:
        counts = [status.counts for status in self._statuses()]
        return sum(each[JobState.QUEUED] + each[JobState.RUNNING] for each in counts)

    def _statuses(self) -> Sequence[BatchStatus]:
        return [self._client.status(batch_id) for batch_id in self._batches]
