"""Read the status of batches from counters. Jobs are never counted: status is polled each second at any size."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BindParameter, Connection, bindparam, func, not_, select, text

from helix_jobs.errors import NotFoundError
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.readable import fetch_all
from helix_jobs.storage.records import BatchStatus
from helix_jobs.storage.schema import BATCH_IS_THERE, batch_counters, batches, jobs
from helix_jobs.storage.states import JobState, derive_batch_state
from helix_jobs.token_counts import TokenCounts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Row

_IDS: Final[BindParameter[Any]] = bindparam("ids", expanding=True)
_OUTCOMES: Final = (
    select(
        batch_counters.c.batch_id,
        batch_counters.c.outcome,
        func.sum(batch_counters.c.jobs).label("jobs"),
        func.sum(batch_counters.c.prompt_tokens).label("prompt_tokens"),
        func.sum(batch_counters.c.cached_prompt_tokens).label("cached_prompt_tokens"),
        func.sum(batch_counters.c.completion_tokens).label("completion_tokens"),
        func.sum(batch_counters.c.draft_tokens).label("draft_tokens"),
        func.sum(batch_counters.c.accepted_tokens).label("accepted_tokens"),
        func.sum(batch_counters.c.cut_off).label("cut_off"),
        func.sum(batch_counters.c.refused).label("refused"),
        func.sum(batch_counters.c.from_cache).label("from_cache"),
        func.min(batch_counters.c.started_at).label("started_at"),
        func.max(batch_counters.c.finished_at).label("finished_at"),
    )
    .where(batch_counters.c.batch_id.in_(_IDS))
    .group_by(batch_counters.c.batch_id, batch_counters.c.outcome)
)
# Matches at most as many rows as workers have slots. Concatenation hides the column's other indexes: SQLite without
# statistics would walk the whole batch by one of them instead of reading the few rows of ix_jobs_running.
_RUNNING_BATCH: Final = jobs.c.batch_id.concat("")
_RUNNING: Final = (
    select(
        _RUNNING_BATCH.label("batch_id"), func.count().label("jobs"), func.min(jobs.c.claimed_at).label("started_at")
    )
    .where(text("state = 'running'"), _RUNNING_BATCH.in_(_IDS))
    .group_by(text("1"))
)
_BATCHES: Final = select(
    batches.c.id,
    batches.c.name,
    batches.c.source,
    batches.c.created_at,
    batches.c.cancelled_at,
    batches.c.paused_at,
    batches.c.paused_why,
    batches.c.brakes,
    batches.c.deadline,
    batches.c.deadline_told_at,
    batches.c.total,
).where(BATCH_IS_THERE)


def batch_status(c: Connection, batch_id: str) -> BatchStatus:
    """The batch's status now. Use a read transaction: then all numbers are of one moment.

    Raises:
        NotFoundError: No such batch.
        UnreadableRowError: A value of the batch cannot be read.
    """
    rows = fetch_all(c, _BATCHES.where(batches.c.id == batch_id))
    if not rows:
        raise NotFoundError(f"there is no batch {batch_id!r}; `helix list` shows the batches")
    return _statuses(c, rows)[0]


def batch_statuses(c: Connection, ids: Sequence[str]) -> dict[str, BatchStatus]:
    """The statuses of those of the batches that exist, by id.

    Raises:
        UnreadableRowError: A value of a batch cannot be read.
    """
    return {status.id: status for status in _statuses(c, fetch_all(c, _BATCHES.where(batches.c.id.in_(ids))))}


def batch_ids(c: Connection) -> list[str]:
    """Every batch's id, sealed or not."""
    return list(c.execute(select(batches.c.id).where(BATCH_IS_THERE).order_by(batches.c.id)).scalars())


def list_batches(c: Connection, limit: int = 20, offset: int = 0) -> list[BatchStatus]:
    """Batches, newest first, without those of interactive requests.

    Raises:
        UnreadableRowError: A value of a batch cannot be read.
    """
    newest = _BATCHES.where(not_(batches.c.interactive))
    newest = newest.order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(limit).offset(offset)
    return _statuses(c, fetch_all(c, newest))


def _statuses(c: Connection, rows: Sequence[Row[*tuple[Any, ...]]]) -> list[BatchStatus]:
    counters.flush(c)
    ids = {"ids": [row.id for row in rows]}
    outcomes: dict[str, list[Row[*tuple[Any, ...]]]] = {}
    for row in fetch_all(c, _OUTCOMES, ids):
        outcomes.setdefault(row.batch_id, []).append(row)
    running = {row.batch_id: row for row in fetch_all(c, _RUNNING, ids)}
    now = datetime.now(UTC)
    return [_status(row, outcomes.get(row.id, []), running.get(row.id), now) for row in rows]


def _status(
    batch: Row[*tuple[Any, ...]],
    outcomes: Sequence[Row[*tuple[Any, ...]]],
    running: Row[*tuple[Any, ...]] | None,
    now: datetime,
) -> BatchStatus:
    jobs_by_outcome = {row.outcome: int(row.jobs) for row in outcomes}
    stored = jobs_by_outcome.pop(counters.STORED, 0)
    succeeded = jobs_by_outcome.pop(JobState.SUCCEEDED.value, 0)
    cancelled = jobs_by_outcome.pop(JobState.CANCELLED.value, 0)
    # The remaining outcomes are error codes.
    failed = sum(jobs_by_outcome.values())
    running_jobs = int(running.jobs) if running is not None else 0
    counts = {
        # At least 0: in a write transaction on Postgres each statement sees another moment.
        JobState.QUEUED: max(0, stored - running_jobs - succeeded - failed - cancelled),
        JobState.RUNNING: running_jobs,
        JobState.SUCCEEDED: succeeded,
        JobState.FAILED: failed,
        JobState.CANCELLED: cancelled,
    }
    state = derive_batch_state(
        counts,
        sealed=batch.total is not None,
        cancelled=batch.cancelled_at is not None,
        paused=batch.paused_at is not None,
    )
    started = [row.started_at for row in outcomes if row.started_at is not None]
    if running is not None and running.started_at is not None:
        started.append(running.started_at)
    finished = [row.finished_at for row in outcomes if row.finished_at is not None]
    unfinished = counts[JobState.QUEUED] + counts[JobState.RUNNING]
    return BatchStatus(
        id=batch.id,
        name=batch.name,
        source=batch.source,
        created_at=batch.created_at,
        cancelled_at=batch.cancelled_at,
        paused_at=batch.paused_at,
        paused_why=batch.paused_why,
        brakes=batch.brakes,
        deadline=batch.deadline,
        deadline_told_at=batch.deadline_told_at,
        total=batch.total,
        state=state,
        counts=counts,
        error_counts={code: count for code, count in sorted(jobs_by_outcome.items()) if count > 0},
        **{name: sum(int(getattr(row, name)) for row in outcomes) for name in TokenCounts().tokens()},
        cut_off=sum(int(row.cut_off) for row in outcomes),
        refused=sum(int(row.refused) for row in outcomes),
        from_cache=sum(int(row.from_cache) for row in outcomes),
        started_at=min(started, default=None),
        finished_at=max(finished, default=None) if batch.total is not None and not unfinished else None,
        read_at=now,
    )
