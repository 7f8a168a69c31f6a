"""Cancel and retry of whole batches, in steps: a million rows take their time, and nobody is to wait for them.

A cancel takes effect with its first transaction: from then on no job of the batch is claimed, published or started.
Its jobs follow in transactions of some thousand rows, so workers' writes, other commands and SQLite's one writer pass
in between, and every commit leaves counters and rows in agreement. A command that is killed half-way is completed by a
worker (``Reconciler``), or by the same command once more.

Trade-off: on Postgres each row of a million costs its share of six indexes, which one UPDATE would not save either;
deriving "cancelled" from the batch instead would be instant, and would have each query, and everyone's own SQL, know
that a job's state is not always what its row says.
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

    A running job's worker loses its lease: it aborts at its next heartbeat, and a result that comes earlier is fenced.
    A batch that is not sealed is deleted: its jobs were never accepted. A submission still at it finds it gone.

    Raises:
        NotFoundError: No such batch.
    """
    # An unfinished submission is deleted here, a million rows in one statement.
    begun = database.transact(lambda c: batch_changes.begin_cancel(c, batch_id), unlimited=True)
    return 0 if begun is None else finish_cancel(database, begun)


def finish_cancel(database: Database, begun: Change, keep_on: Callable[[], bool] = lambda: True) -> int:
    """Cancel what is left of a batch whose cancel has begun, as long as ``keep_on`` says so; returns how many."""
    return _in_steps(database, begun, RUNNABLE_STATES, batch_changes.cancel_lines, keep_on)


def retry_batch(database: Database, batch_id: str) -> int:
    """Queue the failed and cancelled jobs of the batch again with fresh attempts; returns how many.

    What succeeded stays as it is. The lease is not reset: a worker still busy with the earlier attempt stays fenced.

    Raises:
        NotFoundError: No such batch.
        UnfinishedSubmissionError: Its submission did not finish.
    """
    with database.read() as c:
        interrupted = [change for change in batch_changes.unfinished_cancels(c) if change.batch_id == batch_id]
    for change in interrupted:
        # Messages of jobs it has not come to may have been refused already; only a cancelled job is published anew.
        finish_cancel(database, change)
    begun = database.transact(lambda c: batch_changes.begin_retry(c, batch_id))
    now = datetime.now(UTC)

    def step(c: Connection, change: Change, after: int, last: int) -> int | None:
        return batch_changes.retry_lines(c, change, after, last, now=now)

    return _in_steps(database, begun, _UNSUCCESSFUL, step, lambda: True)


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
