"""BrakeWatch: pauses the batches whose brakes say so."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from helix_jobs.storage.braking import brake, braked_batches

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.storage.database import Database

logger = logging.getLogger(__name__)

# Trade-off: a batch runs on for so long after its brake has said stop. In return, batches with brakes cost a query
# every few seconds and nothing at the end of a job.
LOOK_SECONDS: Final = 5.0


class BrakeWatch:
    """Looks at the batches with brakes. Workers may look at the same time: a batch is paused once.

    Args:
        database: The truth.
        clock: Monotonic seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._next = clock()

    def look(self) -> None:
        """Look, if it is time to.

        Raises:
            DatabaseUnreachableError: The database does not answer.
        """
        if self._clock() < self._next:
            return
        now = datetime.now(UTC)
        with self._database.read() as connection:
            due = [batch.status.id for batch in braked_batches(connection) if batch.is_due(now)]
        for batch_id in due:
            stopped = self._database.transact(lambda c, batch_id=batch_id: brake(c, batch_id, now))  # type: ignore[misc]
            if stopped is not None:
                logger.warning(
                    "batch %s is paused, %d jobs wait: %s; `helix resume %s` goes on",
                    batch_id,
                    stopped.waiting,
                    stopped.why,
                    batch_id,
                )
        self._next = self._clock() + LOOK_SECONDS
