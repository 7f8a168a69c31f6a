"""Cancel and retry of whole batches, in steps: no other writer waits while a million rows change.

A cancel takes effect with its first transaction: from then on no job of the batch is claimed, published or started.
Its jobs follow in transactions of some thousand rows. Workers and other commands write in between, and every commit
leaves counters and rows in agreement. If a command is killed half-way, a worker (``Reconciler``) or a repetition of
the command completes it.

Trade-off: on Postgres each of a million rows updates six indexes, as it would in a single UPDATE. Deriving "cancelled"
from the batch would be instant, but every query, and every user's own SQL, would have to know that a job's row does
not always hold its state.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from helix_jobs.storage import batch_changes
from helix_jobs.storage.states import RUNNABLE_STATES, JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sqlalchemy import Connection

    from helix_jobs.storage.batch_changes import Change
    from helix_jobs.storage.database import Database

    _Step = Callable[[Connection, Change, int, int], int | None]

ROWS: Final = 5000
_UNSUCCESSFUL: Final = (JobState.FAILED, JobState.CANCELLED)


def cancel_batch(database: Database, batch_id: str) -> int:
    """Cancel every queued and running job of the batch; finished ones stay. Returns how many were cancelled.

    The worker of a running job loses its lease: it aborts the job at its next heartbeat, and an earlier result is
    fenced. A batch that is not sealed is deleted: its jobs were never accepted. A submission still running fails.

    Raises:
        NotFoundError: No such batch.
    """
    # Unlimited: an unfinished submission is deleted here, up to a million rows in one statement.
    begun = database.transact(lambda c: batch_changes.begin_cancel(c, batch_id, now=datetime.now(UTC)), unlimited=True)
    return 0 if begun is None else finish_cancel(database, begun)


def finish_cancel(database: Database, begun: Change, keep_on: Callable[[], bool] = lambda: True) -> int:
    """Cancel the remaining jobs of a batch whose cancel has begun, while ``keep_on`` is true; returns how many."""
    return _in_steps(database, begun, RUNNABLE_STATES, batch_changes.cancel_lines, keep_on)


def retry_batch(database: Database, batch_id: str) -> int:
    """Queue the failed and cancelled jobs of the batch again with fresh attempts; returns how many.

    Succeeded jobs stay as they are. Leases are not reset: a worker still busy with an earlier attempt stays fenced.

    Raises:
        NotFoundError: No such batch.
        UnfinishedSubmissionError: Its submission did not finish.
    """
    begun = begin_retry(database, batch_id)
    now = datetime.now(UTC)

    def step(c: Connection, change: Change, after: int, last: int) -> int | None:
        return batch_changes.retry_lines(c, change, after, last, now=now)

    return _in_steps(database, begun, _UNSUCCESSFUL, step, lambda: True)


def begin_retry(database: Database, batch_id: str) -> Change:
    """Mark the batch not cancelled, after the end of a cancel that was interrupted.

    Raises:
        NotFoundError: No such batch.
        UnfinishedSubmissionError: Its submission did not finish.
    """
    with database.read() as c:
        interrupted = [change for change in batch_changes.unfinished_cancels(c) if change.batch_id == batch_id]
    for change in interrupted:
        # Workers may already have refused messages of jobs that the cancel has not reached. Only a cancelled job is
        # published again, so finish the cancel first.
        finish_cancel(database, change)
    return database.transact(lambda c: batch_changes.begin_retry(c, batch_id))


def _in_steps(
    database: Database, begun: Change, states: Collection[JobState], step: _Step, keep_on: Callable[[], bool]
) -> int:
    changed, after = 0, 0
    while keep_on():
        with database.read() as c:
            last = batch_changes.next_lines(c, begun.batch_id, states, after, ROWS)
        if last is None:
            break
        count = database.transact(lambda c, after=after, last=last: step(c, begun, after, last))  # type: ignore[misc]
        if count is None:  # someone has changed their mind
            break
        changed, after = changed + count, last
    return changed
