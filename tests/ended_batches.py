"""Batches that have ended, written straight into the tables: many jobs in no time, and of any age."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, text, update

from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.schema import batches
from helix_jobs.storage.utc_datetime import UTCDateTime
from tests.store_helpers import now, stored_batch

if TYPE_CHECKING:
    from helix_jobs.storage.database import Database

_INSERT_JOBS: Final = {
    "sqlite": """
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :n)
        INSERT INTO jobs (batch_id, line, custom_id, request, state, attempts, lease, queued_at, claimed_at,
                          finished_at)
        SELECT :b, i, 'c' || i, :request, 'succeeded', 1, 1, :then, :then, :then FROM n
    """,
    "postgresql": """
        INSERT INTO jobs (batch_id, line, custom_id, request, state, attempts, lease, queued_at, claimed_at,
                          finished_at)
        SELECT :b, i, 'c' || i, CAST(:request AS json), 'succeeded', 1, 1, :then, :then, :then
        FROM generate_series(1, :n) AS g(i)
    """,
}
_INSERT_RESULTS: Final = """
    INSERT INTO results (job_id, output_text, finish_reason, prompt_tokens, cached_prompt_tokens, completion_tokens,
                         queue_seconds, decode_seconds, total_seconds, draft_tokens, accepted_tokens, target_model,
                         device, dtype, worker_id, created_at)
    SELECT id, :answer, 'stop', 5, 1, 7, 1, 1, 1, 8, 6, 'target', 'cpu', 'float32', 'w1', :then
    FROM jobs WHERE batch_id = :b
"""


def ended_batch_of(database: Database, count: int, *, age: timedelta = timedelta(0), answer: str = "a" * 900) -> str:
    """A batch of jobs that all succeeded so long ago, with 300 bytes of prompt each; returns its id."""
    batch_id, _ = stored_batch(database, 1)
    then = now() - age
    values = {"b": batch_id, "n": count, "then": then, "request": f'{{"prompt": "{"p" * 300}"}}', "answer": answer}
    with database.write(unlimited=True) as c:
        c.execute(text("DELETE FROM jobs WHERE batch_id = :b"), values)
        for statement in (_INSERT_JOBS[database.dialect], _INSERT_RESULTS):
            c.execute(text(statement).bindparams(bindparam("then", type_=UTCDateTime)), values)
        c.execute(update(batches).where(batches.c.id == batch_id).values(total=count, created_at=then))
        counters.recount(c, batch_id)
    return batch_id
