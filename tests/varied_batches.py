"""Batches whose jobs ended in every way, written straight into the tables: what a person looks for in an answers' list.

Line i of a batch:

- failed where i is a multiple of 1000, as ``prompt_too_long``, every tenth of these as ``deadline``; cancelled where
  i % 1500 is 7; otherwise it succeeded,
- was cut off where i % 5000 is 3, thought where i % 777 is 5, and was refused twice where i % 4000 is 11,
- ended i milliseconds after the batch began, and its answer names its line in words.
"""

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

_NUMBERS: Final = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :n)",
    "postgresql": "WITH n(i) AS (SELECT * FROM generate_series(1, :n))",
}
_MOMENT: Final = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', julianday(:then) + i / 86400000.0)",
    "postgresql": "CAST(:then AS timestamptz) + i * interval '1 millisecond'",
}
_INSERT_JOBS: Final = """
    INSERT INTO jobs (batch_id, line, custom_id, request, state, attempts, tries, lease, queued_at, claimed_at,
                      finished_at, error_code, error_message)
    {numbers}
    SELECT :b, i, 'c' || i,
           CAST('{{"prompt":"Question ' || i || ': ' || :filler || '","seed":' || i || ',"sampling":{{}}}}' AS {json}),
           CASE WHEN i % 1000 = 0 THEN 'failed' WHEN i % 1500 = 7 THEN 'cancelled' ELSE 'succeeded' END,
           1, CASE WHEN i % 4000 = 11 THEN 2 ELSE 0 END, 1, :then, :then, {moment},
           CASE WHEN i % 10000 = 0 THEN 'deadline' WHEN i % 1000 = 0 THEN 'prompt_too_long' END,
           CASE WHEN i % 1000 = 0 THEN 'line ' || i || ' cannot be answered' END
    FROM n
"""
_END_JOBS: Final = """
    UPDATE jobs SET state = 'succeeded', attempts = 1, lease = 1, claimed_at = :then, finished_at = :then
    WHERE batch_id = :b
"""
_INSERT_RESULTS: Final = """
    INSERT INTO results (job_id, output_text, finish_reason, prompt_tokens, cached_prompt_tokens, completion_tokens,
                         queue_seconds, ttft_seconds, decode_seconds, total_seconds, tokens_per_second, draft_tokens,
                         accepted_tokens, target_model, device, dtype, worker_id, created_at, reasoning_text)
    SELECT id, 'Answer to line ' || line || '. ' || :answer,
           CASE WHEN line % 5000 = 3 THEN 'length' ELSE 'stop' END, 5, 1, 7, 1, 0.25, 1, 1.25, 7, 8, 6,
           'target', 'cpu', 'float32', 'w1', :then, CASE WHEN line % 777 = 5 THEN 'Let me think about ' || line END
    FROM jobs WHERE batch_id = :b AND state = 'succeeded'
"""


def varied_batch_of(database: Database, count: int, *, answer_bytes: int = 900) -> str:
    """A batch of so many ended jobs; returns its id."""
    batch_id, _ = stored_batch(database, 1)
    then = now() - timedelta(hours=1)
    values = {"b": batch_id, "n": count, "then": then, "filler": "warum? " * 40, "answer": _words(answer_bytes)}
    kind = "text" if database.dialect == "sqlite" else "json"
    jobs = _INSERT_JOBS.format(numbers=_NUMBERS[database.dialect], moment=_MOMENT[database.dialect], json=kind)
    with database.write(unlimited=True) as c:
        c.execute(text("DELETE FROM jobs WHERE batch_id = :b"), values)
        for statement in (jobs, _INSERT_RESULTS):
            c.execute(text(statement).bindparams(bindparam("then", type_=UTCDateTime)), values)
        c.execute(update(batches).where(batches.c.id == batch_id).values(total=count, created_at=then))
        counters.recount(c, batch_id)
    return batch_id


def answer_batch(database: Database, batch_id: str, *, answer_bytes: int = 900) -> None:
    """Have each job of a batch, none of which has begun, end with an answer that names its line."""
    values = {"b": batch_id, "then": now(), "answer": _words(answer_bytes)}
    with database.write(unlimited=True) as c:
        for statement in (_END_JOBS, _INSERT_RESULTS):
            c.execute(text(statement).bindparams(bindparam("then", type_=UTCDateTime)), values)
        counters.recount(c, batch_id)


def _words(size: int) -> str:
    """Words of so many bytes, of which no number and no name of a line is made."""
    return ("und so weiter bis zum Ende der Zeile; " * (size // 39 + 1))[:size]
