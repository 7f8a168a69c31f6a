"""Figures over all batches, for monitoring: cheap at a million jobs, as they come from counters and small indexes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select, text

from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.process_identity import ProcessIdentity
from helix_jobs.storage.records import LeaseHolder, QueueFigures
from helix_jobs.storage.schema import batch_counters, batches, jobs, workers
from helix_jobs.storage.states import OUTCOMES
from helix_jobs.storage.utc_datetime import UTCDateTime

if TYPE_CHECKING:
    from sqlalchemy import Connection

_OUTCOMES: Final = (
    select(batch_counters.c.outcome, func.sum(batch_counters.c.jobs).label("jobs"))
    .join_from(batch_counters, batches)
    .where(batches.c.total.is_not(None))
    .group_by(batch_counters.c.outcome)
)
# Trade-off: no index on queued_at, which would cost every claim and every stored job. For unpublished jobs, this reads
# the first job of each batch's lowest priority; for published ones, the jobs published longest ago. A job that came
# back to the queue looks younger than its neighbours, so the answer may be younger than the truth by one job.
_OLDEST_UNPUBLISHED: Final = text("""
    SELECT min(queued_at) AS oldest FROM jobs WHERE id IN (
        SELECT (SELECT j.id FROM jobs j WHERE j.batch_id = b.id AND j.state = 'queued' AND j.published_at IS NULL
                ORDER BY j.priority, j.id LIMIT 1)
        FROM batches b WHERE b.total IS NOT NULL AND b.cancelled_at IS NULL AND b.paused_at IS NULL)
""").columns(oldest=UTCDateTime)
_OLDEST_PUBLISHED: Final = text("""
    SELECT min(queued_at) AS oldest FROM (
        SELECT queued_at FROM jobs WHERE state = 'queued' AND published_at IS NOT NULL ORDER BY published_at LIMIT 100
    ) AS waiting
""").columns(oldest=UTCDateTime)
_HOLDINGS: Final = (
    select(jobs.c.worker_id, func.count().label("leases"), func.min(jobs.c.claimed_at).label("claimed_at"))
    .where(text("state = 'running'"))
    .group_by(jobs.c.worker_id)
)


def queue_figures(c: Connection) -> QueueFigures:
    """The figures of the whole queue. Use a read transaction: then all numbers are of one moment."""
    counters.flush(c)
    outcomes = dict.fromkeys(OUTCOMES, 0)
    outcomes |= {str(row.outcome): int(row.jobs) for row in c.execute(_OUTCOMES)}
    stored = outcomes.pop(counters.STORED, 0)
    holders = lease_holders(c)
    running = sum(holder.leases for holder in holders)
    waiting = [c.execute(query).scalar_one() for query in (_OLDEST_UNPUBLISHED, _OLDEST_PUBLISHED)]
    return QueueFigures(
        queued=max(0, stored - sum(outcomes.values()) - running),
        running=running,
        ended=outcomes,
        oldest_queued_at=min((moment for moment in waiting if moment is not None), default=None),
        oldest_claimed_at=min((h.claimed_at for h in holders if h.claimed_at is not None), default=None),
        oldest_heartbeat_at=min((h.heartbeat_at for h in holders if h.heartbeat_at is not None), default=None),
        live_workers=sum(holder.is_live for holder in holders),
    )


def lease_holders(c: Connection) -> list[LeaseHolder]:
    """Every live worker, and every other worker that holds a lease, stopped and unknown ones included."""
    holdings = {row.worker_id: row for row in c.execute(_HOLDINGS)}
    known = c.execute(select(workers).where(workers.c.stopped_at.is_(None) | workers.c.id.in_(list(holdings)))).all()
    found = []
    for worker in known:
        held = holdings.pop(worker.id, None)
        found.append(
            LeaseHolder(
                worker_id=worker.id,
                hostname=worker.hostname,
                pid=worker.pid,
                identity=ProcessIdentity(
                    pid=worker.pid,
                    boot_id=worker.boot_id,
                    pid_namespace=worker.pid_namespace,
                    started=worker.process_started,
                ),
                heartbeat_at=worker.heartbeat_at,
                is_live=worker.stopped_at is None,
                leases=0 if held is None else int(held.leases),
                claimed_at=None if held is None else held.claimed_at,
            )
        )
    found += [
        LeaseHolder(worker_id=str(worker_id), leases=int(held.leases), claimed_at=held.claimed_at)
        for worker_id, held in holdings.items()
    ]
    return sorted(found, key=lambda holder: holder.worker_id)
