"""A request on its own: stored as a batch of one job, in one transaction, and read back by its job."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from sqlalchemy import BindParameter, bindparam, select, text

from helix_jobs.json_line import compact_json
from helix_jobs.storage import batches as stored
from helix_jobs.storage.schema import batches, jobs

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    from sqlalchemy import Connection

    from helix_jobs.new_job import NewJob
    from helix_jobs.storage.records import NewBatch

_IDS: Final[BindParameter[Any]] = bindparam("ids", expanding=True)
_ENDED: Final = select(jobs.c.id).where(text("jobs.finished_at IS NOT NULL"), jobs.c.id.in_(_IDS))


def store_request(c: Connection, batch: NewBatch, job: NewJob, *, place: tuple[int, int] = (0, 1)) -> int:
    """Store a sealed batch of this one job, and return the job's id.

    The batch's idempotency key may name an earlier one: then nothing is stored, and the earlier job's id is returned.

    Args:
        c: A write transaction.
        batch: The batch.
        job: Its job.
        place: Which part of a client's request it is, and of how many.

    Raises:
        IdempotencyConflictError: The key names a batch with another content.
    """
    found = stored.create_batch(c, batch)
    # Who reads the answer while it grows is no part of what is asked.
    asked = {name: value for name, value in job.request.items() if name != "stream"}
    content = [job.priority, asked] if place == (0, 1) else [job.priority, asked, *place]
    digest = sha256(compact_json(content).encode()).hexdigest()
    if found.total is None:
        job.seed_from(found.id)
        stored.insert_jobs(c, found.id, [job], datetime.now(UTC))
    # A batch of the same key that is sealed is compared by its digest here.
    stored.seal_batch(c, found.id, 1, digest)
    return int(c.execute(select(jobs.c.id).where(jobs.c.batch_id == found.id)).scalar_one())


def ended_jobs(c: Connection, job_ids: Collection[int]) -> list[int]:
    """Those of the jobs that are in a final state."""
    return list(c.execute(_ENDED, {"ids": list(job_ids)}).scalars())


def missing_jobs(c: Connection, job_ids: Collection[int]) -> set[int]:
    """Those of the jobs that do not exist any more: a person has purged them."""
    there = c.execute(select(jobs.c.id).where(jobs.c.id.in_(_IDS)), {"ids": list(job_ids)}).scalars()
    return set(job_ids) - set(there)


def ended_interactive_batches(c: Connection, before: datetime, limit: int) -> list[str]:
    """Interactive batches whose job ended before a moment, oldest first."""
    query = (
        select(batches.c.id)
        .join(jobs, jobs.c.batch_id == batches.c.id)
        .where(batches.c.interactive, jobs.c.finished_at < before)
        .order_by(batches.c.created_at)
        .limit(limit)
    )
    return list(c.execute(query).scalars())
