"""The runs of the workers that answered a batch, while it ran: how full the engine was, and what it drafted and why.

A run may have served other batches as well. Trade-off: the runs of this batch alone would have to be looked up by each
of its answers; a worker's runs are a few rows an hour.

Of very many runs an even part is read. Trade-off: their sums are then estimates, but no batch is too long for a report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from helix_jobs.storage.readable import readable_rows
from helix_jobs.storage.schema import runs, workers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

# Held at once.
_MOST: Final = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """A stretch of a worker's time. Figures are None where they are not known.

    Attributes:
        slots: Sequences that the worker runs at once.
        mean_batch_size: Sequences in a step on average.
        mean_depth: Drafted tokens a sequence and step.
        depth_reasons: Reason -> steps.
        energy_joules: What the device took.
    """

    worker_id: str
    started_at: datetime
    finished_at: datetime
    slots: int
    steps: int
    completion_tokens: int
    preemptions: int | None
    mean_batch_size: float | None
    mean_depth: float | None
    depth_reasons: Mapping[str, int] | None
    schedule_seconds: float | None
    draft_seconds: float | None
    target_seconds: float | None
    verify_seconds: float | None
    energy_joules: float | None


@dataclass(frozen=True, slots=True)
class BatchRuns:
    """Runs of a batch's workers.

    Attributes:
        read: Those that were read, in their order; without unreadable ones.
        step: Of so many runs of a worker one was read.
        count: All that there are.
    """

    read: Sequence[BatchRun] = ()
    step: int = 1
    count: int = 0


def batch_runs(c: Connection, worker_ids: Sequence[str], begun: datetime, ended: datetime) -> BatchRuns:
    """The runs of these workers that overlap with this time and have ended."""
    if not worker_ids:
        return BatchRuns()
    theirs = (
        runs.c.worker_id.in_(worker_ids),
        runs.c.steps > 0,
        runs.c.started_at < ended,
        runs.c.finished_at > begun,
    )
    count = c.execute(select(func.count()).select_from(runs).where(*theirs)).scalar_one()
    step = max(1, -(-count // _MOST))
    columns = [runs.c[name] for name in BatchRun.__dataclass_fields__ if name != "slots"]
    query = (
        select(*columns, workers.c.slots)
        .join_from(runs, workers, workers.c.id == runs.c.worker_id)
        .where(*theirs)
        .order_by(runs.c.started_at, runs.c.id)
    )
    if step > 1:
        # Numbered worker by worker: in the order of time, one of two workers in turn might be left out.
        place = func.row_number().over(order_by=(runs.c.worker_id, runs.c.started_at, runs.c.id))
        numbered = select(runs.c.id, place.label("place")).where(*theirs).subquery()
        query = query.where(runs.c.id.in_(select(numbered.c.id).where(numbered.c.place % step == 0)))
    read = [BatchRun(**row._mapping) for row in readable_rows(c, query, runs.c.id)]  # noqa: SLF001  (SQLAlchemy's documented name)
    return BatchRuns(read, step, count)
