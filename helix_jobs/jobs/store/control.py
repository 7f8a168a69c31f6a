"""What a person does to stored work: cancel, retry, name it.

These update many rows; run them through ``Database.transact`` (see there).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, and_, delete, func, select, text, update

from helix_jobs.errors import NotFoundError, UnfinishedSubmissionError
from helix_jobs.jobs.schema import batch_counters, batches, jobs
from helix_jobs.jobs.states import JobState
from helix_jobs.jobs.store import counters

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

# One statement: a row that moves between the two states while the statement waits for its lock still matches.
_CANCELLABLE: Final = text("state IN ('queued', 'running')")
_UNSUCCESSFUL: Final = text("state IN ('failed', 'cancelled')")


def cancel_batch(c: Connection, batch_id: str, *, now: datetime | None = None) -> int:
    """Cancel every queued and running job of the batch; finished ones stay. Returns how many were cancelled.

    A running job's worker loses its lease: it aborts at its next heartbeat, and a result that comes earlier is fenced.
    A batch that is not sealed is deleted: its jobs were never accepted. A submission still at it finds it gone.

    Raises:
        NotFoundError: No such batch.
    """
    moment = now or datetime.now(UTC)
    if not _lock_batch(c, batch_id):
        c.execute(delete(batches).where(batches.c.id == batch_id))
        return 0
    c.execute(update(batches).where(batches.c.id == batch_id).values(cancelled_at=moment))
    cancelled = _cancel(c, jobs.c.batch_id == batch_id, moment)
    _count_cancelled(c, batch_id, cancelled, moment)
    return cancelled


def cancel_job(c: Connection, job_id: int, *, now: datetime | None = None) -> int:
    """Cancel one queued or running job; returns 1, or 0 if it had already ended.

    Raises:
        NotFoundError: No such job.
    """
    moment = now or datetime.now(UTC)
    row = c.execute(select(jobs.c.batch_id).where(jobs.c.id == job_id)).first()
    if row is None:
        raise NotFoundError(f"there is no job {job_id}; `helix status BATCH --jobs` lists job ids")
    cancelled = _cancel(c, jobs.c.id == job_id, moment)
    _count_cancelled(c, row.batch_id, cancelled, moment)
    return cancelled


def retry_batch(c: Connection, batch_id: str, *, now: datetime | None = None) -> int:
    """Queue the failed and cancelled jobs of the batch again with fresh attempts; returns how many.

    What succeeded stays as it is. The lease is not reset: a worker still busy with the earlier attempt stays fenced.

    Raises:
        NotFoundError: No such batch.
        UnfinishedSubmissionError: Its submission did not finish, so there is nothing to try again.
    """
    moment = now or datetime.now(UTC)
    if not _lock_batch(c, batch_id):
        raise UnfinishedSubmissionError(unfinished_submission(batch_id))
    c.execute(update(batches).where(batches.c.id == batch_id).values(cancelled_at=None))
    counters.flush(c)
    totals = c.execute(
        select(batch_counters.c.outcome, func.sum(batch_counters.c.jobs).label("jobs"))
        .where(batch_counters.c.batch_id == batch_id)
        .where(batch_counters.c.outcome.not_in([counters.STORED, JobState.SUCCEEDED.value]))
        .group_by(batch_counters.c.outcome)
    ).all()
    # Outcome by outcome, so that each update's row count is exactly what it takes out of that counter, whatever
    # workers fail meanwhile.
    moved = {row.outcome: _requeue(c, batch_id, row.outcome, moment) for row in totals if row.jobs > 0}
    counters.add(
        c,
        *(
            counters.Share(batch_id=batch_id, writer=counters.PERSON, outcome=outcome, jobs=-count)
            for outcome, count in moved.items()
            if count
        ),
    )
    return sum(moved.values())


def resolve(c: Connection, name: str | int) -> str | int:
    """Turn what a person typed into a job id (int) or a batch id (str).

    A number is a job. ``last`` is the newest batch; any other text is a batch id or the unambiguous start of one.

    Raises:
        NotFoundError: Nothing, or more than one batch, has this name.
    """
    typed = str(name).strip()
    if typed.isdecimal():
        found = c.execute(select(jobs.c.id).where(jobs.c.id == int(typed))).scalar_one_or_none()
        if found is None:
            raise NotFoundError(f"there is no job {typed}; `helix status BATCH --jobs` lists job ids")
        return int(found)
    if typed == "last":
        newest = select(batches.c.id).order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(1)
        matches = list(c.execute(newest).scalars())
    else:
        matches = list(c.execute(select(batches.c.id).where(batches.c.id == typed)).scalars())
    if not matches and typed:
        starts = batches.c.id.startswith(typed, autoescape=True)
        matches = list(c.execute(select(batches.c.id).where(starts).order_by(batches.c.id).limit(2)).scalars())
    if len(matches) != 1:
        what = f"more than one batch starts with {typed!r}" if matches else f"there is no batch {typed!r}"
        raise NotFoundError(f"{what}; `helix list` shows the batches")
    return str(matches[0])


def unfinished_submission(batch_id: str) -> str:
    """What a person should know about a batch that nobody goes on to submit."""
    return (
        f"the submission of batch {batch_id} has not finished, so none of its jobs can run; if it was interrupted, "
        f"submit the file again with the same idempotency key to finish it, or remove it: helix cancel {batch_id}"
    )


def _lock_batch(c: Connection, batch_id: str) -> bool:
    """Make cancel, retry and seal of one batch wait for each other; workers are not concerned (NO KEY UPDATE).

    Returns whether the batch is sealed.
    """
    query = select(batches.c.total).where(batches.c.id == batch_id).with_for_update(key_share=True)
    row = c.execute(query).first()
    if row is None:
        raise NotFoundError(f"there is no batch {batch_id!r}; `helix list` shows the batches")
    return row.total is not None


def _cancel(c: Connection, which: ColumnElement[bool], moment: datetime) -> int:
    statement = (
        update(jobs)
        .where(which, _CANCELLABLE)
        .values(state=JobState.CANCELLED.value, finished_at=moment, error_code=None, error_message=None)
    )
    return c.execute(statement).rowcount


def _requeue(c: Connection, batch_id: str, outcome: str, moment: datetime) -> int:
    if outcome == JobState.CANCELLED.value:
        which = jobs.c.state == JobState.CANCELLED.value
    else:
        which = and_(jobs.c.state == JobState.FAILED.value, jobs.c.error_code == outcome)
    statement = (
        update(jobs)
        .where(jobs.c.batch_id == batch_id, _UNSUCCESSFUL, which)
        .values(
            state=JobState.QUEUED.value,
            attempts=0,
            worker_id=None,
            queued_at=moment,
            published_at=None,
            claimed_at=None,
            finished_at=None,
            error_code=None,
            error_message=None,
        )
    )
    return c.execute(statement).rowcount


def _count_cancelled(c: Connection, batch_id: str, cancelled: int, moment: datetime) -> None:
    if cancelled:
        counters.add(
            c,
            counters.Share(
                batch_id=batch_id,
                writer=counters.PERSON,
                outcome=JobState.CANCELLED.value,
                jobs=cancelled,
                finished_at=moment,
            ),
        )
