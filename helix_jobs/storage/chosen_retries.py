"""Queue chosen jobs of a batch again: answered ones, whose answers go, and failed or cancelled ones.

Jobs are found in slices of lines, each in a transaction that only reads. Each change is fenced as ever: an answer is
named by the moment at which its job ended, so one that came since is not discarded in its place.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import false, func, select
from sqlalchemy.exc import DBAPIError

from helix_jobs.errors import InputError
from helix_jobs.storage import batch_changes
from helix_jobs.storage.changes_in_steps import begin_retry
from helix_jobs.storage.job_condition import JobCondition, rows_of
from helix_jobs.storage.refusals import StoredAnswer, refuse_stored
from helix_jobs.storage.schema import jobs
from helix_jobs.storage.states import JobState

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


@dataclass(frozen=True, slots=True)
class ChosenJob:
    """A job that has ended, as it was found: what became of it since is not touched."""

    job_id: int
    line: int
    state: str
    finished_at: datetime


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
    """
    condition = None if where is None else JobCondition.parse(where)
    # Before anything changes, the database says whether it understands the condition.
    next(_slices(database, batch_id, condition, invalid=invalid), None)
    change = begin_retry(database, batch_id)
    now = datetime.now(UTC)
    queued = 0
    for chosen in _slices(database, batch_id, condition, invalid=invalid):
        for start in range(0, len(chosen), _STEP):
            part = chosen[start : start + _STEP]
            count = database.transact(lambda c, part=part: queue_chosen(c, change, part, now))  # type: ignore[misc]
            if count is None:  # somebody has cancelled the batch meanwhile
                return queued
            queued += count
    return queued


def _slices(
    database: Database, batch_id: str, condition: JobCondition | None, *, invalid: bool
) -> Iterator[Sequence[ChosenJob]]:
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
        columns = (rows.c.job_id, rows.c.line, rows.c.state, rows.c.finished_at)
        query = select(*columns).where(*asked).distinct().order_by(rows.c.line)
        with database.read() as c:
            try:
                found = [ChosenJob(**row._mapping) for row in c.execute(query)]  # noqa: SLF001  (SQLAlchemy's documented name)
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


def queue_chosen(c: Connection, change: Change, chosen: Sequence[ChosenJob], now: datetime) -> int | None:
    """Queue these jobs again, and return how many were; None if the batch was cancelled meanwhile.

    Args:
        c: A write transaction.
        change: The retry that has begun.
        chosen: Jobs of its batch, some hundred at most.
        now: The time written; the same when the call is repeated after an uncertain commit.
    """
    answers = [StoredAnswer(one.job_id, one.finished_at) for one in chosen if one.state == JobState.SUCCEEDED.value]
    queued = refuse_stored(c, change.batch_id, answers, max_tries=NO_LIMIT, reason="", now=now)
    for one in chosen:
        if one.state != JobState.SUCCEEDED.value:
            count = batch_changes.retry_lines(c, change, one.line - 1, one.line, now=now)
            if count is None:
                return None
            queued += count
    return queued
