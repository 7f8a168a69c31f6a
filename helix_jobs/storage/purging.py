"""Remove ended batches with their jobs, results and counters, and the rows of stopped workers.

The first transaction hides a batch: it clears the batch's total, counters and idempotency key, and sets
``cancelled_at`` to the time (``schema.BATCH_IS_THERE`` tells such a batch from all others). From then on no command and
no worker reads, claims, publishes, cancels or retries it. Its jobs and results follow some thousand rows at a time, the
batch row last, so an interrupted purge leaves nothing that could pass for a whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Integer, String, and_, bindparam, case, delete, func, not_, or_, select, text, update

from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.readable import fetch_all
from helix_jobs.storage.schema import (
    BATCH_IS_THERE,
    batch_counters,
    batches,
    jobs,
    kept_answers,
    results,
    runs,
    workers,
)
from helix_jobs.storage.states import JobState
from helix_jobs.storage.utc_datetime import UTCDateTime

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Row

_SUCCEEDED: Final = JobState.SUCCEEDED.value
_CANCELLED: Final = JobState.CANCELLED.value


def _sum_of(*outcomes: str, others: bool = False) -> Any:  # noqa: ANN401  (SQLAlchemy's types of sums say nothing)
    """Jobs under these outcomes, summed from ``batch_counters``; with ``others``, under all outcomes but these."""
    among = batch_counters.c.outcome.in_(outcomes)
    return func.coalesce(func.sum(case((not_(among) if others else among, batch_counters.c.jobs), else_=0)), 0)


_STORED: Final = _sum_of(counters.STORED)
_ENDED: Final = _sum_of(counters.STORED, others=True)
_FAILED: Final = _sum_of(counters.STORED, _SUCCEEDED, _CANCELLED, others=True)
# When an unfinished submission stored its newest line. The index over batch and line finds it.
_NEWEST_LINE: Final = (
    select(jobs.c.queued_at)
    .where(jobs.c.batch_id == batches.c.id)
    .order_by(jobs.c.line.desc())
    .limit(1)
    .correlate(batches)
    .scalar_subquery()
)
_BATCHES: Final = (
    select(
        batches.c.id,
        batches.c.name,
        batches.c.created_at,
        batches.c.total,
        _STORED.label("stored"),
        _sum_of(_SUCCEEDED).label("succeeded"),
        _FAILED.label("failed"),
        _sum_of(_CANCELLED).label("cancelled"),
        func.max(batch_counters.c.finished_at, type_=UTCDateTime).label("finished_at"),
        case((batches.c.total.is_(None), _NEWEST_LINE), else_=None).label("newest_line"),
    )
    .select_from(batches.outerjoin(batch_counters, batch_counters.c.batch_id == batches.c.id))
    .where(BATCH_IS_THERE)
    .group_by(batches.c.id)
    .having(or_(batches.c.total.is_(None), _STORED <= _ENDED))
    .order_by(batches.c.created_at, batches.c.id)
)
# Reads the rows, not the counters: a wrong counter must not cost a person's answers. Each subquery has a small index;
# see status.py for the first and third, whose concatenation hides their column from other indexes.
_RUNNABLE: Final = text("""
    SELECT (SELECT 1 FROM jobs WHERE state = 'running' AND batch_id || '' = :batch LIMIT 1) IS NOT NULL
        OR (SELECT 1 FROM jobs WHERE batch_id = :batch AND state = 'queued' AND published_at IS NULL LIMIT 1)
           IS NOT NULL
        OR (SELECT 1 FROM jobs WHERE state = 'queued' AND published_at IS NOT NULL AND batch_id || '' = :batch LIMIT 1)
           IS NOT NULL AS runnable
""").bindparams(bindparam("batch", type_=String))
_LINES: Final = "batch_id = :batch AND line > :after AND line <= :last"
_BYTES: Final = {
    "sqlite": "length(CAST({} AS BLOB))",
    "postgresql": "octet_length(CAST({} AS text))",
}
# The same of columns that hold bytes; neither database reads the value for it.
_STORED_BYTES: Final = {"sqlite": "length({})", "postgresql": "octet_length({})"}
_TEXTS: Final = ("output_text", "reasoning_text", "tool_calls", "scores")
_COMPRESSED: Final = ("logprobs", "prompt_logprobs")


def _answer_size(dialect: str) -> str:
    """SQL for the bytes of an answer's content. Its figures are not counted."""
    sizes = [_BYTES[dialect].format(f"r.{name}") for name in _TEXTS]
    sizes += [_STORED_BYTES[dialect].format(f"r.{name}") for name in _COMPRESSED]
    return " + ".join(f"coalesce({size}, 0)" for size in sizes)


# A job with several answers stands in several rows; its own columns count in the first.
_MEASURE: Final = {
    dialect: text(
        "SELECT count(DISTINCT j.id) AS jobs, count(r.job_id) AS results,"  # noqa: S608  (constants)
        f" sum(CASE WHEN coalesce(r.choice, 0) = 0 THEN {size.format('j.request')}"
        f" + coalesce({size.format('j.error_message')}, 0) ELSE 0 END"
        f" + {_answer_size(dialect)}) AS bytes"
        " FROM jobs j LEFT JOIN results r ON r.job_id = j.id"
        " WHERE j.batch_id = :batch AND j.line > :after AND j.line <= :last"
    ).columns(jobs=Integer, results=Integer, bytes=Integer)
    for dialect, size in _BYTES.items()
}
_DELETE_RESULTS: Final = text(f"DELETE FROM results WHERE job_id IN (SELECT id FROM jobs WHERE {_LINES})")  # noqa: S608  (a constant)
_DELETE_JOBS: Final = text(f"DELETE FROM jobs WHERE {_LINES}")  # noqa: S608  (a constant)
_HAS_RESULT: Final = select(results.c.job_id).where(results.c.run_id == runs.c.id).exists()
_HAS_RUN: Final = select(runs.c.id).where(runs.c.worker_id == workers.c.id).exists()


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedBatch:
    """A batch without queued or running jobs.

    Attributes:
        total: Number of jobs; None for an unfinished submission.
        stored: Number of stored jobs, also for an unfinished submission.
        ended_at: When its last job ended; for an unfinished submission, when its newest line was stored.
    """

    id: str
    name: str | None
    total: int | None
    stored: int
    succeeded: int
    failed: int
    cancelled: int
    ended_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The content of some lines of a batch.

    ``bytes`` counts requests, error messages, and answers with their reasoning, calls, scores and log probabilities.
    """

    jobs: int
    results: int
    bytes: int


def ended_batches(c: Connection) -> list[EndedBatch]:
    """Every batch that has ended or whose submission has not finished, oldest first. Read from counters.

    Raises:
        UnreadableRowError: A value of a row cannot be read.
    """
    return [_ended(row) for row in fetch_all(c, _BATCHES)]


def half_purged(c: Connection) -> list[str]:
    """Batches whose removal has begun but not ended: a purge is under way, or was interrupted."""
    return list(c.execute(select(batches.c.id).where(not_(BATCH_IS_THERE)).order_by(batches.c.id)).scalars())


def stored_jobs(c: Connection) -> int:
    """The number of all stored jobs, read from counters."""
    stored = select(func.coalesce(func.sum(batch_counters.c.jobs), 0)).where(
        batch_counters.c.outcome == counters.STORED
    )
    return int(c.execute(stored).scalar_one())


def begin_purge(c: Connection, batch: EndedBatch, now: datetime) -> bool:
    """Hide a batch, the first step of its removal. Returns False, and does nothing, if it has changed since.

    From this commit on its idempotency key is free.
    """
    c.execute(select(batches.c.id).where(batches.c.id == batch.id).with_for_update())
    row = next(iter(fetch_all(c, _BATCHES.where(batches.c.id == batch.id))), None)
    # The queued lines of an unfinished submission are not jobs yet.
    waits = batch.total is not None and c.execute(_RUNNABLE, {"batch": batch.id}).scalar_one()
    if row is None or _ended(row) != batch or waits:
        return False
    c.execute(delete(batch_counters).where(batch_counters.c.batch_id == batch.id))
    c.execute(
        update(batches)
        .where(batches.c.id == batch.id)
        .values(total=None, cancelled_at=now, idempotency_key=None, content_digest=None)
    )
    return True


def last_line(c: Connection, batch_id: str, after: int, count: int) -> int | None:
    """The line of the last of the next ``count`` jobs; None if none is left."""
    lines = select(jobs.c.line).where(jobs.c.batch_id == batch_id, jobs.c.line > after)
    found = lines.order_by(jobs.c.line).limit(count).subquery()
    last: int | None = c.execute(select(func.max(found.c.line))).scalar_one()
    return last


def measure_lines(c: Connection, batch_id: str, after: int, last: int) -> Content:
    """The content of these lines (``after`` < line <= ``last``)."""
    row = c.execute(_MEASURE[c.dialect.name], {"batch": batch_id, "after": after, "last": last}).one()
    return Content(jobs=row.jobs, results=row.results, bytes=int(row.bytes or 0))


def purge_lines(c: Connection, batch_id: str, after: int, last: int) -> Content:
    """Remove these lines of a batch whose removal has begun; returns their content."""
    if batch_id not in half_purged(c):
        return Content(jobs=0, results=0, bytes=0)
    content = measure_lines(c, batch_id, after, last)
    lines = {"batch": batch_id, "after": after, "last": last}
    c.execute(_DELETE_RESULTS, lines)
    c.execute(_DELETE_JOBS, lines)
    return content


def end_purge(c: Connection, batch_id: str) -> bool:
    """Remove the batch row; False if another purge has."""
    return c.execute(delete(batches).where(batches.c.id == batch_id, not_(BATCH_IS_THERE))).rowcount > 0


def purge_runs(c: Connection, before: datetime, limit: int) -> int:
    """Remove up to ``limit`` runs that ended before ``before`` or broke off, if no result refers to them.

    Returns how many. A run under way stays: its worker has not stopped.
    """
    stopped = select(workers.c.id).where(workers.c.stopped_at < before)
    broke_off = and_(runs.c.finished_at.is_(None), runs.c.worker_id.in_(stopped))
    old = select(runs.c.id).where(or_(runs.c.finished_at < before, broke_off), not_(_HAS_RESULT)).limit(limit)
    return c.execute(delete(runs).where(runs.c.id.in_(old))).rowcount


def purge_workers(c: Connection, before: datetime, limit: int) -> int:
    """Remove up to ``limit`` workers that stopped before ``before``, without runs or running jobs; returns how many.

    One that ended jobs of a batch that is there stays: the batch's manifest says what it was.
    """
    named = select(batch_counters.c.writer).distinct()
    running = select(jobs.c.worker_id).where(text("state = 'running'"), jobs.c.worker_id.is_not(None))
    # What may be taken still says who computed it.
    kept = select(kept_answers.c.worker_id).distinct()
    wanted = or_(workers.c.id.in_(running), workers.c.id.in_(named), workers.c.id.in_(kept))
    gone = and_(workers.c.stopped_at < before, not_(wanted))
    old = select(workers.c.id).where(gone, not_(_HAS_RUN))
    return c.execute(delete(workers).where(workers.c.id.in_(old.limit(limit)))).rowcount


def _ended(row: Row[*tuple[Any, ...]]) -> EndedBatch:
    ended_at: Sequence[datetime | None] = (row.newest_line, row.finished_at, row.created_at)
    return EndedBatch(
        id=row.id,
        name=row.name,
        total=row.total,
        stored=int(row.stored),
        succeeded=int(row.succeeded),
        failed=int(row.failed),
        cancelled=int(row.cancelled),
        ended_at=next(moment for moment in ended_at if moment is not None),
    )
