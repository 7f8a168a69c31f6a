"""Changes a person makes to stored work: cancel and retry.

These update many rows; run them through ``Database.transact`` (see there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, and_, case, delete, func, or_, select, text, update

from helix_jobs.errors import ErrorCode, NotFoundError, UnfinishedSubmissionError
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.readable import readable_rows
from helix_jobs.storage.schema import BATCH_IS_THERE, batch_counters, batches, jobs, results
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Row

# One statement: a row that moves between the two states while the statement waits for its lock still matches.
_CANCELLABLE: Final = text("state IN ('queued', 'running')")
_UNSUCCESSFUL: Final = text("state IN ('failed', 'cancelled')")


@dataclass(frozen=True, slots=True)
class Change:
    """A cancel or retry that has begun: the batch is changed, its jobs follow some lines at a time.

    Attributes:
        batch_id: The batch.
        cancelled_at: The batch's ``cancelled_at`` while this change is the latest: the moment of the cancel, None for
            a retry. Any other value: a later cancel or retry has replaced this one; stop.
    """

    batch_id: str
    cancelled_at: datetime | None


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that has ended, as it was found. The time is the fence: a job that ended again since is another one."""

    job_id: int
    state: JobState
    finished_at: datetime


def begin_cancel(c: Connection, batch_id: str, *, now: datetime) -> Change | None:
    """Mark the batch cancelled: from this commit on none of its jobs is claimed or published.

    Returns None if the batch was not sealed: then it has been deleted.

    Raises:
        NotFoundError: No such batch.
    """
    if not lock_batch(c, batch_id):
        c.execute(delete(batches).where(batches.c.id == batch_id))
        return None
    ended = {"cancelled_at": now, "paused_at": None, "paused_why": None}
    c.execute(update(batches).where(batches.c.id == batch_id).values(ended))
    return Change(batch_id, now)


def cancel_lines(c: Connection, change: Change, after: int, last: int) -> int | None:
    """Cancel the queued and running jobs of these lines (``after`` < line <= ``last``); returns how many.

    None: the batch was retried meanwhile.
    """
    if change.cancelled_at is None or not _stands(c, change):
        return None
    lines = and_(jobs.c.batch_id == change.batch_id, jobs.c.line > after, jobs.c.line <= last)
    cancelled = _cancel(c, lines, change.cancelled_at)
    _count_cancelled(c, change.batch_id, cancelled, change.cancelled_at)
    return cancelled


def unfinished_cancels(c: Connection) -> dict[Change, int]:
    """Count the queued and running jobs of each cancelled batch: its cancel is under way, or was interrupted.

    A batch whose ``cancelled_at`` cannot be read is left out; ``helix db check`` names it.
    """
    signed = case((batch_counters.c.outcome == counters.STORED, batch_counters.c.jobs), else_=-batch_counters.c.jobs)
    left = func.sum(signed)
    query = (
        select(batches.c.id, batches.c.cancelled_at, left.label("left"))
        .join_from(batch_counters, batches)
        .where(batches.c.cancelled_at.is_not(None), batches.c.total.is_not(None))
        .group_by(batches.c.id, batches.c.cancelled_at)
        .having(left > 0)
    )
    return {Change(row.id, row.cancelled_at): int(row.left) for row in readable_rows(c, query, batches.c.id)}


def cancel_job(c: Connection, job_id: int, *, now: datetime) -> int:
    """Cancel one queued or running job; returns 1, or 0 if it had already ended.

    Raises:
        NotFoundError: No such job.
    """
    row = c.execute(select(jobs.c.batch_id).where(jobs.c.id == job_id)).first()
    if row is None:
        raise NotFoundError(f"there is no job {job_id}; `helix status BATCH --jobs` lists job ids")
    cancelled = _cancel(c, jobs.c.id == job_id, now)
    _count_cancelled(c, row.batch_id, cancelled, now)
    return cancelled


def begin_retry(c: Connection, batch_id: str) -> Change:
    """Mark the batch not cancelled; jobs that a cancel has not reached stay as they are.

    Raises:
        NotFoundError: No such batch.
        UnfinishedSubmissionError: The batch's submission did not finish, so there is nothing to retry.
    """
    if not lock_batch(c, batch_id):
        raise UnfinishedSubmissionError(unfinished_submission(batch_id))
    c.execute(update(batches).where(batches.c.id == batch_id).values(cancelled_at=None))
    return Change(batch_id, None)


def retry_lines(c: Connection, change: Change, after: int, last: int, *, now: datetime) -> int | None:
    """Queue the failed and cancelled jobs of these lines (``after`` < line <= ``last``) again; returns how many.

    Attempts begin anew, and so do the tries of a job whose last answer was refused; that answer goes. Any other job
    that had an answer refused, or replaced by ``chosen_retries``, counts one: it neither draws nor takes that again.

    None: the batch was cancelled meanwhile.
    """
    if not _stands(c, change):
        return None
    lines = and_(jobs.c.batch_id == change.batch_id, jobs.c.line > after, jobs.c.line <= last, _UNSUCCESSFUL)
    return _retry(c, change, lines, jobs.c.state, now)


def retry_jobs(c: Connection, change: Change, ended: Sequence[EndedJob], *, now: datetime) -> int | None:
    """Queue failed and cancelled jobs again, each only if it has not ended anew since; returns how many.

    As ``retry_lines``; some hundred jobs at most, or none, which only asks whether the change still stands.
    """
    if not _stands(c, change):
        return None
    # Each job is found by its id alone: concatenation hides the small indexes over states. With one of them, while
    # Postgres has no statistics, each step would walk all failures of the batch.
    these = and_(jobs.c.id.in_([one.job_id for one in ended]), jobs.c.batch_id.concat("") == change.batch_id)
    held = c.execute(select(jobs.c.id, jobs.c.finished_at).where(these).with_for_update()).all()
    as_found = {(one.job_id, one.finished_at) for one in ended}
    ids = [job.id for job in held if (job.id, job.finished_at) in as_found]
    return _retry(c, change, jobs.c.id.in_(ids), jobs.c.state.concat(""), now)


def next_lines(c: Connection, batch_id: str, states: Collection[JobState], after: int, count: int) -> int | None:
    """The line of the last of the next ``count`` jobs in one of these states (or an unknown one); None if none is left.

    Walks the batch in the order of its lines, so that all steps together read it once.
    """
    # Concatenation hides the small indexes over states: with one of them each step would sort all remaining rows.
    # For an expression Postgres guesses that few rows are equal to a value, and that most are unequal. Asked for the
    # states themselves it expects fewer rows than a step has, and sorts the whole rest of the table in each step.
    others = [state.value for state in JobState if state not in states]
    found = (
        select(jobs.c.line)
        .where(jobs.c.batch_id == batch_id, jobs.c.line > after)
        .where(jobs.c.state.concat("").not_in(others))
        .order_by(jobs.c.line)
        .limit(count)
        .subquery()
    )
    last: int | None = c.execute(select(func.max(found.c.line))).scalar_one()
    return last


def reopen(c: Connection, batch_id: str) -> None:
    """Jobs of the batch were queued again: its next end, and its next failures, are news."""
    noted = or_(batches.c.end_noted_at.is_not(None), batches.c.failing_noted_at.is_not(None))
    news = update(batches).where(batches.c.id == batch_id, noted)
    c.execute(news.values(end_noted_at=None, failing_noted_at=None))


def unfinished_submission(batch_id: str) -> str:
    """The message about a batch whose submission has stopped."""
    return (
        f"the submission of batch {batch_id} has not finished, so none of its jobs can run; if it was interrupted, "
        f"submit the file again with the same idempotency key to finish it, or remove it: helix cancel {batch_id}"
    )


def lock_batch(c: Connection, batch_id: str) -> bool:
    """Make cancel, retry and seal of one batch wait for each other; workers do not wait (NO KEY UPDATE).

    Returns whether the batch is sealed.
    """
    query = select(batches.c.total).where(batches.c.id == batch_id, BATCH_IS_THERE).with_for_update(key_share=True)
    row = c.execute(query).first()
    if row is None:
        raise NotFoundError(f"there is no batch {batch_id!r}; `helix list` shows the batches")
    return row.total is not None


def _stands(c: Connection, change: Change) -> bool:
    """Whether this change is still the latest; it stays so until the end of this transaction."""
    query = select(batches.c.cancelled_at).where(batches.c.id == change.batch_id).with_for_update(key_share=True)
    row = c.execute(query).first()
    return row is not None and row.cancelled_at == change.cancelled_at


def _cancel(c: Connection, which: ColumnElement[bool], moment: datetime) -> int:
    statement = (
        update(jobs)
        .where(which, _CANCELLABLE)
        .values(state=JobState.CANCELLED.value, finished_at=moment, error_code=None, error_message=None)
    )
    return c.execute(statement).rowcount


def _retry(c: Connection, change: Change, which: ColumnElement[bool], state: ColumnElement[str], now: datetime) -> int:
    """Queue jobs of the batch again; ``state`` is their state as an index knows it, or hidden from it."""
    counters.flush(c)
    totals = c.execute(
        select(batch_counters.c.outcome, func.sum(batch_counters.c.jobs).label("jobs"))
        .where(batch_counters.c.batch_id == change.batch_id)
        .where(batch_counters.c.outcome.not_in([counters.STORED, JobState.SUCCEEDED.value]))
        .group_by(batch_counters.c.outcome)
    ).all()
    # One update for each outcome: its row count is exactly what the outcome's counter loses, even while workers
    # fail further jobs.
    moved = {row.outcome: _requeue(c, which, state, row.outcome, now) for row in totals if row.jobs > 0}
    counters.add(
        c,
        *(
            counters.Share(batch_id=change.batch_id, writer=counters.PERSON, outcome=outcome, jobs=-len(queued))
            for outcome, queued in moved.items()
            if queued
        ),
    )
    for outcome, queued in moved.items():
        _forget_refusals(c, change.batch_id, queued, 0 if outcome == ErrorCode.NOT_ACCEPTED.value else 1)
    if any(moved.values()):
        reopen(c, change.batch_id)
    return sum(map(len, moved.values()))


def _requeue(
    c: Connection, which: ColumnElement[bool], state: ColumnElement[str], outcome: str, moment: datetime
) -> Sequence[Row[tuple[int, int]]]:
    """Queue the jobs of one outcome; returns their ids and their tries so far."""
    if outcome == JobState.CANCELLED.value:
        ended = state == JobState.CANCELLED.value
    else:
        ended = and_(state == JobState.FAILED.value, jobs.c.error_code == outcome)
    statement = (
        update(jobs)
        .where(which, ended)
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
        .returning(jobs.c.id, jobs.c.tries)
    )
    return c.execute(statement).all()


def _forget_refusals(c: Connection, batch_id: str, queued: Sequence[Row[tuple[int, int]]], left: int) -> None:
    """Set back to ``left`` the tries of jobs that have more, and remove the refused answers kept for some.

    This transaction has queued the jobs and holds their rows, and no worker has claimed them yet.
    """
    more = [job for job in queued if job.tries > left]
    if not more:
        return
    ids = [job.id for job in more]
    c.execute(delete(results).where(results.c.job_id.in_(ids)))
    c.execute(update(jobs).where(jobs.c.id.in_(ids)).values(tries=left))
    counters.add(c, counters.refusals(batch_id, counters.PERSON, -sum(job.tries - left for job in more)))


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
