"""Queue chosen jobs of a batch again: answered ones, whose answers go, and failed or cancelled ones.

Jobs are found in slices of lines, each in a transaction that only reads. Each change is fenced as ever: a job is named
by the moment at which it ended, so what became of it since is not touched.

All are found before the first changes. A condition that the database cannot decide for some later row is thus refused
while every answer is still there. Trade-off: the command holds a small record of each job that it chose.
"""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import false, func, select
from sqlalchemy.exc import DBAPIError

from helix_jobs.errors import DatabaseUnreachableError, InputError
from helix_jobs.storage.batch_changes import EndedJob, retry_jobs
from helix_jobs.storage.changes_in_steps import begin_retry
from helix_jobs.storage.job_condition import JobCondition, rows_of
from helix_jobs.storage.refusals import StoredAnswer, refuse_stored
from helix_jobs.storage.schema import jobs
from helix_jobs.storage.states import JobState
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import ColumnElement, Connection

    from helix_jobs.storage.batch_changes import Change
    from helix_jobs.storage.database import Database

_SLICE: Final = 20_000
# Jobs of one transaction.
_STEP: Final = 100
# Nobody's limit: a person has asked for another answer.
NO_LIMIT: Final = 2**31 - 1
# SQLSTATEs of values and of statements, without that of a missing right.
_SAID_WRONG: Final = ("22", "42")
_NO_RIGHT: Final = "42501"
_ENDED: Final = (JobState.SUCCEEDED.value, JobState.FAILED.value, JobState.CANCELLED.value)


def retry_chosen(database: Database, batch_id: str, where: str | None, *, invalid: bool) -> int:
    """Queue jobs again that have ended and match; returns how many.

    Args:
        database: The database.
        batch_id: The batch.
        where: A condition, see ``JobCondition``; None for any.
        invalid: Only jobs with an answer that does not keep its constraint whole.

    Raises:
        InputError: The condition is wrong, or the database cannot decide it.
        NotFoundError: No such batch.
        UnfinishedSubmissionError: Its submission did not finish.
        DatabaseUnreachableError: The database was lost; the message says how many jobs are queued by then.
    """
    condition = None if where is None else JobCondition.parse(where)
    chosen = [job for found in _slices(database, batch_id, condition, invalid=invalid) for job in found]
    change = begin_retry(database, batch_id)
    now = datetime.now(UTC)
    queued = 0
    for start in range(0, len(chosen), _STEP):
        part = chosen[start : start + _STEP]
        try:
            count = database.transact(lambda c, part=part: queue_chosen(c, change, part, now))  # type: ignore[misc]
        except DatabaseUnreachableError as error:
            raise type(error)(f"{error}; {counted(queued, 'job')} of {len(chosen):,} queued again before") from error
        if count is None:  # somebody has cancelled the batch meanwhile
            break
        queued += count
    return queued


def _slices(
    database: Database, batch_id: str, condition: JobCondition | None, *, invalid: bool
) -> Iterator[Sequence[EndedJob]]:
    with database.read() as c:
        last = c.execute(select(func.max(jobs.c.line)).where(jobs.c.batch_id == batch_id)).scalar_one() or 0
    for after in range(0, last, _SLICE):
        rows = rows_of(
            jobs.c.batch_id == batch_id,
            jobs.c.line > after,
            jobs.c.line <= after + _SLICE,
            jobs.c.state.in_(_ENDED),
            jobs.c.finished_at.is_not(None),
        )
        asked: list[ColumnElement[bool] | Any] = [] if condition is None else [condition.clause]
        if invalid:
            asked.append(rows.c.is_valid == false())
        query = select(rows.c.job_id, rows.c.state, rows.c.finished_at).where(*asked).distinct().order_by(rows.c.job_id)
        with database.read() as c:
            try:
                found = [EndedJob(job_id, JobState(state), ended) for job_id, state, ended in c.execute(query)]
            except DBAPIError as error:
                if condition is None or not _is_conditions_fault(error):
                    raise
                reason = next(iter(str(error.orig).splitlines()), type(error.orig).__name__)
                raise InputError(f"the database cannot decide the condition ({reason:.200}); correct it") from error
        yield found


def _is_conditions_fault(error: DBAPIError) -> bool:
    """Whether a statement was refused for what it says: its syntax, its types, or a value that it computes."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return bool(code == sqlite3.SQLITE_ERROR)
    state: str = getattr(error.orig, "sqlstate", None) or ""
    return state.startswith(_SAID_WRONG) and state != _NO_RIGHT


def queue_chosen(c: Connection, change: Change, chosen: Sequence[EndedJob], now: datetime) -> int | None:
    """Queue these jobs again, and return how many were; None if the batch was cancelled meanwhile.

    Args:
        c: A write transaction.
        change: The retry that has begun.
        chosen: Jobs of its batch, some hundred at most.
        now: The time written; the same when the call is repeated after an uncertain commit.
    """
    unsuccessful = [one for one in chosen if one.state is not JobState.SUCCEEDED]
    queued = retry_jobs(c, change, unsuccessful, now=now)
    if queued is None:
        return None
    answers = [StoredAnswer(one.job_id, one.finished_at) for one in chosen if one.state is JobState.SUCCEEDED]
    return queued + refuse_stored(c, change.batch_id, answers, max_tries=NO_LIMIT, reason="", now=now)
