"""News of batches that no single transaction sees: that the last job has ended, and that too many fail.

Any number of processes may look. A batch is marked in the transaction that stores the notice, so each end is told once;
a retry that queues jobs again takes the mark away.

Trade-off: the end of a job could tell that it was the last. But jobs of one batch end in many transactions at once,
none of which sees the others, and each would have to sum up its batch.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import and_, case, func, or_, select, text, update

from helix_jobs.brakes import LEAST_ENDED
from helix_jobs.errors import NotFoundError
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.batch_changes import lock_batch
from helix_jobs.storage.notices import CANCELLED, COMPLETED, EXPIRED, FAILING, add_notice, batch_notice
from helix_jobs.storage.schema import api_batches, batch_counters, batches
from helix_jobs.storage.states import BatchState, JobState
from helix_jobs.storage.status import batch_status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from helix_jobs.storage.records import BatchStatus

# SQLite uses the partial index only for a query that repeats its words.
_OPEN: Final = and_(text("end_noted_at IS NULL AND interactive = false"), batches.c.total.is_not(None))
# An end that nobody saw for so long is no news.
_NEWS: Final = timedelta(hours=72)


def batches_with_news(c: Connection, failing: float | None) -> Sequence[str]:
    """The batches whose end is not noted yet, and those that fail and of which that is not noted.

    Args:
        c: A read transaction.
        failing: The share of ended jobs that have failed from which on a batch is failing; None: none is.
    """
    outcome, number = batch_counters.c.outcome, batch_counters.c.jobs
    left = func.sum(case((outcome == counters.STORED, number), else_=-number))
    ended = func.sum(case((outcome.in_([counters.STORED, JobState.CANCELLED.value]), 0), else_=number))
    final = [counters.STORED, JobState.CANCELLED.value, JobState.SUCCEEDED.value]
    failed = func.sum(case((outcome.in_(final), 0), else_=number))
    news = left <= 0
    if failing is not None:
        fails = and_(batches.c.failing_noted_at.is_(None), ended >= LEAST_ENDED, failed >= failing * ended)
        news = or_(news, fails)
    query = select(batches.c.id).join(batch_counters, batch_counters.c.batch_id == batches.c.id)
    return c.execute(query.where(_OPEN).group_by(batches.c.id).having(news)).scalars().all()


def note_news(c: Connection, batch_id: str, failing: float | None, now: datetime) -> Sequence[str]:
    """Look at one batch again, and store what there is to tell; returns the kinds of the notices."""
    try:
        lock_batch(c, batch_id)
    except NotFoundError:  # purged meanwhile
        return ()
    noted = select(batches.c.end_noted_at, batches.c.failing_noted_at).where(batches.c.id == batch_id)
    row = c.execute(noted).one()
    if row.end_noted_at is not None:
        return ()
    status = batch_status(c, batch_id)
    kinds, marks = [], {}
    if row.failing_noted_at is None and failing is not None and _fails(status, failing):
        kinds.append(FAILING)
        marks["failing_noted_at"] = now
    if status.done:
        kinds.append(_ending(c, status))
        marks["end_noted_at"] = now
    if marks:
        c.execute(update(batches).where(batches.c.id == batch_id).values(marks))
    if status.finished_at is not None and status.finished_at < now - _NEWS:
        return ()
    for kind in kinds:
        add_notice(c, batch_notice(c, kind, status), now)
    return kinds


def _fails(status: BatchStatus, failing: float) -> bool:
    failed = status.counts[JobState.FAILED]
    return status.processed >= LEAST_ENDED and failed >= failing * status.processed


def _ending(c: Connection, status: BatchStatus) -> str:
    if status.state is not BatchState.CANCELLED:
        return COMPLETED
    expired = select(api_batches.c.expired_at).where(api_batches.c.batch_id == status.id)
    return CANCELLED if c.execute(expired).scalar() is None else EXPIRED
