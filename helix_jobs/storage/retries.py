"""What becomes of a job whose worker was lost: it is queued again at once, until its attempts are used up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, bindparam, literal_column, select, text, update

from helix_jobs.errors import ErrorCode
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.readable import readable_rows
from helix_jobs.storage.records import Reclaimed
from helix_jobs.storage.schema import jobs, workers
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Row, Select

# A literal condition: SQLite uses the partial index for no other.
_IS_RUNNING: Final = text("state = 'running'")
# For a queued job, ``attempts`` counts the claims that never ended, and those that were given back because the engine's
# server was lost: a release takes its own back, a retry resets it.
AT_LAST_ATTEMPT: Final = and_(jobs.c.attempts > 0, jobs.c.attempts + 1 >= jobs.c.max_attempts)
_AWAITS_LAST: Final[Select[Any]] = select(literal_column("1")).where(
    jobs.c.id == bindparam("job_id"), jobs.c.state == JobState.QUEUED.value, AT_LAST_ATTEMPT
)


def awaits_last_attempt(c: Connection, job_id: int) -> bool:
    """Whether the job is queued and has one attempt left, after earlier ones died with their workers or servers."""
    return c.execute(_AWAITS_LAST, {"job_id": job_id}).first() is not None


def reclaim(c: Connection, worker_id: str, now: datetime, *, heartbeat: datetime | None = None) -> Reclaimed | None:
    """Take every job from a lost worker and mark it stopped.

    Jobs with attempts left go back to the queue; the others fail with ``worker_lost`` and can be retried by hand.

    Args:
        c: A write transaction.
        worker_id: The lost worker.
        now: The time written.
        heartbeat: The last heartbeat seen. If the worker has sent another one since, nothing happens and None is
            returned. None: the worker is known to be dead, so its heartbeat is not compared.
    """
    # Read the heartbeat only when it is compared: an unreadable one must not stop this reclaim.
    seen = workers.c.id if heartbeat is None else workers.c.heartbeat_at
    worker = c.execute(select(seen).where(workers.c.id == worker_id).with_for_update()).first()
    if heartbeat is not None and worker is not None and worker.heartbeat_at != heartbeat:
        return None
    held = jobs.c.worker_id == worker_id
    is_capped = jobs.c.attempts >= jobs.c.max_attempts
    # One unreadable claim time must not keep the other leases from being taken.
    began = readable_rows(c, select(jobs.c.id, jobs.c.claimed_at).where(_IS_RUNNING, held, is_capped), jobs.c.id)
    failed = c.execute(
        update(jobs)
        .where(_IS_RUNNING, held, is_capped)
        .values(
            state=JobState.FAILED.value,
            finished_at=now,
            error_code=ErrorCode.WORKER_LOST.value,
            error_message="the worker was lost each time this job ran; look at the worker's log, then retry by hand",
        )
        .returning(jobs.c.id, jobs.c.batch_id)
    ).all()
    requeued = c.execute(
        update(jobs)
        .where(_IS_RUNNING, held)
        .values(state=JobState.QUEUED.value, published_at=None, claimed_at=None, worker_id=None, queued_at=now)
    ).rowcount
    claimed = {row.id: row.claimed_at for row in began if row.claimed_at is not None}
    counters.add(c, *_lost_shares(failed, claimed, worker_id, now))
    c.execute(update(workers).where(workers.c.id == worker_id, workers.c.stopped_at.is_(None)).values(stopped_at=now))
    return Reclaimed(requeued=requeued, failed=len(failed))


def _lost_shares(
    failed: Sequence[Row[*tuple[Any, ...]]], claimed: Mapping[int, datetime], worker_id: str, now: datetime
) -> list[counters.Share]:
    per_batch: dict[str, list[int]] = {}
    for row in failed:
        per_batch.setdefault(row.batch_id, []).append(row.id)
    return [
        counters.Share(
            batch_id=batch_id,
            writer=worker_id,
            outcome=ErrorCode.WORKER_LOST.value,
            jobs=len(ids),
            started_at=min((claimed[job_id] for job_id in ids if job_id in claimed), default=None),
            finished_at=now,
        )
        for batch_id, ids in per_batch.items()
    ]
