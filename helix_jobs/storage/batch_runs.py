"""The runs of the workers that answered a batch, while it ran: how full the engine was, and what it drafted and why.

A run may have served other batches as well. Trade-off: the runs of this batch alone would have to be looked up by each
of its answers; a worker's runs are a few rows an hour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import select

from helix_jobs.storage.readable import readable_rows
from helix_jobs.storage.schema import runs, workers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

# A month of one worker's.
_MOST: Final = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """A stretch of a worker's time. Figures are None where they are not known.

    Attributes:
        slots: Sequences that the worker runs at once.
        mean_batch_size: Sequences in a step on average.
        mean_depth: Drafted tokens a sequence and step.
        depth_reasons: Reason -> steps.
    """

    worker_id: str
    started_at: datetime
    finished_at: datetime
    slots: int
    steps: int
    completion_tokens: int
    draft_tokens: int
    accepted_tokens: int
    preemptions: int | None
    mean_batch_size: float | None
    mean_depth: float | None
    depth_reasons: Mapping[str, int] | None
    schedule_seconds: float | None
    draft_seconds: float | None
    target_seconds: float | None
    verify_seconds: float | None


def batch_runs(c: Connection, worker_ids: Sequence[str], begun: datetime, ended: datetime) -> list[BatchRun]:
    """The runs of these workers that overlap with this time and have ended, in their order; without unreadable ones."""
    if not worker_ids:
        return []
    columns = [runs.c[name] for name in BatchRun.__dataclass_fields__ if name != "slots"]
    query = (
        select(*columns, workers.c.slots)
        .join_from(runs, workers, workers.c.id == runs.c.worker_id)
        .where(runs.c.worker_id.in_(worker_ids), runs.c.steps > 0)
        .where(runs.c.started_at < ended, runs.c.finished_at > begun)
        .order_by(runs.c.started_at, runs.c.id)
        .limit(_MOST)
    )
    return [BatchRun(**row._mapping) for row in readable_rows(c, query, runs.c.id)]  # noqa: SLF001  (SQLAlchemy's documented name)
