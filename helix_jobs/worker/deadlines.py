"""DeadlineWatch: makes batches more urgent whose deadline would be missed, and says so where that is not enough."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from helix_jobs.forecast.clock import end_of_work, working_seconds
from helix_jobs.outlook.batch_outlook import batch_outlook
from helix_jobs.outlook.deadline import Raise, decide, remedies
from helix_jobs.storage import deadlines

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.opening_hours import OpeningHours
    from helix_jobs.outlook.batch_outlook import BatchOutlook
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import BatchStatus

logger = logging.getLogger(__name__)

# Trade-off: a deadline may slip for so long unseen. In return its forecast, some tenths of a second of one processor,
# is no burden for the engine beside it.
LOOK_SECONDS: Final = 30.0
# Jobs that one look raises beside those in the broker; it holds fewer, so these are enough until the next look.
_MOST_RAISED: Final = 20_000


class DeadlineWatch:
    """Looks at the batches with deadlines. Workers may look at the same time: each step is taken from what is stored.

    Args:
        database: The truth.
        lease: Seconds; a worker that was silent for longer counts as gone.
        hours: When workers work; None for always.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        database: Database,
        lease: float,
        hours: OpeningHours | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._lease = lease
        self._hours = hours
        self._clock = clock
        self._next = clock()

    def look(self) -> None:
        """Look, if it is time to.

        Raises:
            DatabaseUnreachableError: The database does not answer.
        """
        if self._clock() < self._next:
            return
        self._next = self._clock() + LOOK_SECONDS
        with self._database.read() as c:
            pressing = deadlines.batches_with_deadlines(c)
        for status in pressing:
            self._look_at(status)

    def _look_at(self, status: BatchStatus) -> None:
        now = datetime.now(UTC)
        with self._database.read() as c:
            outlook = batch_outlook(c, status, now, self._lease)
            lowest = deadlines.lowest_priority(c, status.id)
            upcoming = deadlines.next_priority(c, status.id, _MOST_RAISED)
        if outlook is None or lowest is None or upcoming is None or status.deadline is None:
            return
        seconds = working_seconds(now, status.deadline, self._hours)
        decision = decide(outlook, seconds, lowest)
        if isinstance(decision, Raise) and upcoming > lowest:
            # Some were raised before, and the others come after them to the same priority: is that one enough?
            with self._database.read() as c:
                outlook = batch_outlook(c, status, now, self._lease, raised_to=upcoming)
            if outlook is None:
                return
            decision = decide(outlook, seconds, upcoming)
            if not isinstance(decision, Raise):
                self._raise(status.id, upcoming)
        if isinstance(decision, Raise):
            self._raise(status.id, decision.to)
        elif decision is not None and status.deadline_told_at is None:
            self._tell(status, outlook, seconds, now)

    def _raise(self, batch_id: str, to: int) -> None:
        raised = self._database.transact(lambda c: deadlines.raise_priority(c, batch_id, to, _MOST_RAISED))
        if raised:
            logger.info("batch %s would miss its deadline: %d jobs have priority %d now", batch_id, raised, to)

    def _tell(self, status: BatchStatus, outlook: BatchOutlook, seconds: float, now: datetime) -> None:
        """Say once, for all workers, that the deadline will probably be missed."""
        done = end_of_work(now, outlook.forecast.median, self._hours)
        helps = remedies(outlook, seconds, is_int8=outlook.is_int8).in_words
        ends = f"it ends about {done:%Y-%m-%d %H:%M} UTC instead of {status.deadline:%Y-%m-%d %H:%M}"
        why = f"{ends}; what would keep it: {helps}"
        if self._database.transact(lambda c: deadlines.note_slipping(c, status, why, now)):
            logger.warning("batch %s will probably miss its deadline: %s", status.id, why)
