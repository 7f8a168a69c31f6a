"""Storing a batch: create, insert lines in chunks, seal. Every step may be repeated after a crash."""

from __future__ import annotations

import base64
import json
import os
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, delete, func, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from helix_jobs.errors import IdempotencyConflictError, NotFoundError
from helix_jobs.json_line import compact_json
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.records import NewBatch, StoredBatch
from helix_jobs.storage.schema import BATCH_IS_THERE, batches, jobs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from helix_jobs.new_job import NewJob

_INSERT_BATCH: Final[dict[str, Any]] = {
    "sqlite": sqlite.insert(batches).on_conflict_do_nothing(index_elements=["idempotency_key"]),
    "postgresql": postgresql.insert(batches).on_conflict_do_nothing(index_elements=["idempotency_key"]),
}
# Plain SQL for the driver: SQLAlchemy's handling of each value would cost a third of the time at a million lines.
_INSERT_JOBS_SQLITE: Final = """
    INSERT INTO jobs (batch_id, line, custom_id, request, state, priority, max_attempts, answer_key, queued_at)
    VALUES (?, ?, ?, ?, 'queued', ?, ?, ?, ?)
    ON CONFLICT (batch_id, line) DO NOTHING
"""
# No conflict target: a concurrent submission of the same lines may hit the index over custom_id first.
# A chunk is one JSON value: as fast as COPY (30,000 rows/s; arrays reach 20,000), and unlike COPY it can skip lines
# that are already stored.
_INSERT_JOBS_POSTGRES: Final = text("""
    INSERT INTO jobs (batch_id, line, custom_id, request, state, priority, max_attempts, answer_key, queued_at)
    SELECT :batch_id, line, custom_id, request, 'queued', priority, max_attempts, answer_key, :queued_at
    FROM json_to_recordset(CAST(:rows AS json)) AS new
         (line integer, custom_id text, request json, priority integer, max_attempts integer, answer_key text)
    ON CONFLICT DO NOTHING
""")
_LOOK_BACK: Final = 1000


def new_batch_id(now: datetime) -> str:
    """A fresh batch id, ``b-YYYYMMDD-xxxxxx``: sorts by day, easy to say aloud."""
    return f"b-{now:%Y%m%d}-{base64.b32encode(os.urandom(5)).decode()[:6].lower()}"


def find_by_idempotency_key(c: Connection, key: str) -> StoredBatch | None:
    """The batch stored under this key, if any."""
    row = c.execute(
        select(batches.c.id, batches.c.total, batches.c.content_digest).where(batches.c.idempotency_key == key)
    ).first()
    if row is None:
        return None
    return StoredBatch(
        id=row.id,
        total=row.total,
        content_digest=row.content_digest,
        reused=True,
    )


def create_batch(c: Connection, batch: NewBatch) -> StoredBatch:
    """Store an unsealed batch, or return the one its idempotency key already names.

    When two submitters use the same key at once, one stores the batch and both get its id.
    """
    inserted = c.execute(
        _INSERT_BATCH[c.dialect.name].returning(batches.c.id),
        {
            "id": batch.id,
            "name": batch.name,
            "source": batch.source,
            "created_at": batch.created_at,
            "defaults": dict(batch.defaults),
            "metadata": dict(batch.metadata),
            "idempotency_key": batch.idempotency_key,
            "interactive": batch.interactive,
            "brakes": batch.brakes,
            "deadline": batch.deadline,
        },
    ).first()
    if inserted is not None:
        return StoredBatch(id=batch.id, total=None, content_digest=None, reused=False)
    stored = find_by_idempotency_key(c, batch.idempotency_key or "")
    if stored is None:
        raise IdempotencyConflictError(
            "the batch of this idempotency key was deleted while it was looked up; submit again"
        )
    return stored


def insert_jobs(c: Connection, batch_id: str, new_jobs: Sequence[NewJob], queued_at: datetime) -> int:
    """Store a chunk of lines of an unsealed batch and return how many were new.

    Lines that are already stored are left alone, so an interrupted submission can simply be repeated.

    Raises:
        NotFoundError: The batch is gone.
        IdempotencyConflictError: The input differs: a stored line is not the new one, or the batch is sealed without
            these lines.
    """
    if not new_jobs:
        return 0
    # A shared lock keeps the batch from being sealed or deleted while lines are added.
    there = select(batches.c.total).where(batches.c.id == batch_id, BATCH_IS_THERE)
    batch = c.execute(there.with_for_update(read=True)).first()
    if batch is None:
        raise NotFoundError(f"batch {batch_id} no longer exists; submit again")
    insert = _insert_postgres if c.dialect.name == "postgresql" else _insert_sqlite
    try:
        inserted = insert(c, batch_id, new_jobs, queued_at)
    except IntegrityError as error:
        raise _custom_id_elsewhere(batch_id) from error
    if inserted and batch.total is not None:
        raise IdempotencyConflictError(
            f"batch {batch_id} is already complete without line {new_jobs[-1].line}; use another idempotency key"
        )
    if inserted < len(new_jobs):
        _check_same_content(c, batch_id, new_jobs)
    if inserted:
        counters.add(
            c,
            counters.Share(batch_id=batch_id, writer=counters.SUBMITTER, outcome=counters.STORED, jobs=inserted),
        )
    return inserted


def seal_batch(
    c: Connection, batch_id: str, total: int, content_digest: str, facts: Mapping[str, Any] | None = None
) -> None:
    """Mark the batch complete; from here on its jobs are published. Sealing twice with the same content is fine.

    Args:
        c: A write transaction.
        batch_id: The batch.
        total: Number of its jobs.
        content_digest: Digest of its lines.
        facts: What is known of the input now that it has been read; added to the batch's defaults.

    Raises:
        NotFoundError: The batch is gone.
        IdempotencyConflictError: The batch is sealed with other content, or holds lines this input does not have.
    """
    # Lock first: either a cancel waits for the seal and then cancels the jobs, or the seal finds the batch deleted.
    row = c.execute(
        select(batches.c.total, batches.c.content_digest, batches.c.defaults)
        .where(batches.c.id == batch_id, BATCH_IS_THERE)
        .with_for_update(key_share=True)
    ).first()
    if row is None:
        raise NotFoundError(f"batch {batch_id} no longer exists; submit again")
    if row.total is not None:
        if (row.total, row.content_digest) != (total, content_digest):
            raise IdempotencyConflictError(
                f"batch {batch_id} is already complete with other content; use another idempotency key"
            )
        return
    stored = c.execute(select(func.count()).select_from(jobs).where(jobs.c.batch_id == batch_id)).scalar_one()
    if stored != total:
        raise IdempotencyConflictError(
            f"batch {batch_id} holds {stored} lines and this input {total}: an earlier submission with the same "
            "idempotency key read another input; use another key"
        )
    known = {"defaults": {**row.defaults, **facts}} if facts else {}
    sealed = {"total": total, "content_digest": content_digest, **known}
    c.execute(update(batches).where(batches.c.id == batch_id).values(sealed))


def is_sealed(c: Connection, batch_id: str) -> bool:
    """Whether the batch is complete. In a write transaction this waits for a seal that is under way."""
    row = c.execute(select(batches.c.total).where(batches.c.id == batch_id).with_for_update()).first()
    return row is not None and row.total is not None


def delete_batch(c: Connection, batch_id: str) -> bool:
    """Delete an unsealed batch with its jobs. Returns False, and deletes nothing, if it is sealed."""
    unsealed = (batches.c.total.is_(None), BATCH_IS_THERE)
    return c.execute(delete(batches).where(batches.c.id == batch_id, *unsealed)).rowcount > 0


def _insert_sqlite(c: Connection, batch_id: str, new_jobs: Sequence[NewJob], queued_at: datetime) -> int:
    stored_at = format(queued_at.astimezone(UTC), "%Y-%m-%d %H:%M:%S.%f")
    rows = [
        (
            *(batch_id, job.line, job.custom_id, compact_json(job.request), job.priority, job.max_attempts),
            *(job.answer_key, stored_at),
        )
        for job in new_jobs
    ]
    return c.exec_driver_sql(_INSERT_JOBS_SQLITE, rows).rowcount


def _insert_postgres(c: Connection, batch_id: str, new_jobs: Sequence[NewJob], queued_at: datetime) -> int:
    rows = [
        {
            "line": job.line,
            "custom_id": job.custom_id,
            "request": job.request,
            "priority": job.priority,
            "max_attempts": job.max_attempts,
            "answer_key": job.answer_key,
        }
        for job in new_jobs
    ]
    parameters = {"batch_id": batch_id, "queued_at": queued_at, "rows": compact_json(rows)}
    return c.execute(_INSERT_JOBS_POSTGRES, parameters).rowcount


def _check_same_content(c: Connection, batch_id: str, new_jobs: Sequence[NewJob]) -> None:
    wanted = {job.line: (job.custom_id, json.loads(compact_json(job.request)), job.priority) for job in new_jobs}
    query = select(jobs.c.line, jobs.c.custom_id, jobs.c.request, jobs.c.priority).where(
        jobs.c.batch_id == batch_id, jobs.c.line.in_(bindparam("lines", expanding=True))
    )
    lines = list(wanted)
    num_stored = 0
    for start in range(0, len(lines), _LOOK_BACK):
        for row in c.execute(query, {"lines": lines[start : start + _LOOK_BACK]}):
            num_stored += 1
            if wanted[row.line] != (row.custom_id, row.request, row.priority):
                raise IdempotencyConflictError(
                    f"line {row.line} differs from what batch {batch_id} already holds under this idempotency key; "
                    "use another key for another input"
                )
    if num_stored < len(wanted):
        raise _custom_id_elsewhere(batch_id)


def _custom_id_elsewhere(batch_id: str) -> IdempotencyConflictError:
    return IdempotencyConflictError(
        f"batch {batch_id} holds a custom_id of this input on another line: an earlier submission with the same "
        "idempotency key read another input; use another key"
    )
