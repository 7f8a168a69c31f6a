"""wait_until_done: asks for a batch's status again and again until every job has ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import UnfinishedSubmissionError
from helix_jobs.storage.batch_changes import unfinished_submission
from helix_jobs.storage.outage import outlast

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import BatchStatus

_FIRST_POLL: Final = 0.05


def wait_until_done(
    database: Database,
    read_status: Callable[[], BatchStatus],
    *,
    timeout: float | None,
    poll: float,
    submitter_silence: float,
    on_update: Callable[[BatchStatus], None] | None,
) -> BatchStatus:
    """Return the status that says done, or the one after ``timeout`` seconds.

    Args:
        database: Where the status is read. A Postgres that goes away between two polls is retried for a minute.
        read_status: Reads the status.
        timeout: Seconds; None waits for ever.
        poll: Seconds between polls; the first polls come sooner, for batches that are soon done.
        submitter_silence: Seconds without a new line after which a submission counts as dead.
        on_update: Called with each status, the last one included.

    Raises:
        NotFoundError: No such batch.
        DatabaseUnreachableError: The database does not answer.
        UnfinishedSubmissionError: The batch is still being submitted, and no line was added for that long.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = min(_FIRST_POLL, poll)
    stored, grew_at = -1, 0.0
    while True:
        status = outlast(database, read_status)
        if on_update is not None:
            on_update(status)
        if status.total is None:
            now = time.monotonic()
            if status.stored != stored:
                stored, grew_at = status.stored, now
            elif now - grew_at >= submitter_silence:
                raise UnfinishedSubmissionError(unfinished_submission(status.id))
        left = None if deadline is None else deadline - time.monotonic()
        if status.done or (left is not None and left <= 0):
            return status
        time.sleep(pause if left is None else min(pause, left))
        pause = min(pause * 2, poll)
