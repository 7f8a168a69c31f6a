"""Shorthands for store tests, and the oracle: counters equal what the rows say."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import case, func, select, text

from helix_jobs.new_job import NewJob
from helix_jobs.storage import batches, claims, workers
from helix_jobs.storage.records import BatchStatus, ClaimedJob, FinishedJob, JobResult, NewBatch, NewWorker, ResultRow
from helix_jobs.storage.results import read_job
from helix_jobs.storage.schema import jobs, results
from helix_jobs.storage.states import JobState
from helix_jobs.storage.status import batch_status

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from helix_jobs.storage.database import Database

DIGEST = "d" * 64


def now() -> datetime:
    return datetime.now(UTC)


def ping(database: Database) -> None:
    """Ask the database for an answer."""
    with database.read() as connection:
        connection.execute(text("SELECT 1"))


def new_jobs(count: int, *, priorities: tuple[int, ...] = (0,), **changes: Any) -> list[NewJob]:
    return [
        NewJob(
            line=line,
            custom_id=f"c{line}",
            request={"prompt": f"Wörter {line}", "seed": 2**64 - line},
            priority=priorities[(line - 1) % len(priorities)],
            **changes,
        )
        for line in range(1, count + 1)
    ]


def stored_batch(
    database: Database, count: int = 3, *, seal: bool = True, key: str | None = None, **changes: Any
) -> tuple[str, list[int]]:
    """Store a batch; returns its id and its jobs' ids in line order."""
    batch_id = batches.new_batch_id(now())
    with database.write() as c:
        batches.create_batch(c, NewBatch(id=batch_id, created_at=now(), idempotency_key=key))
        batches.insert_jobs(c, batch_id, new_jobs(count, **changes), now())
        if seal:
            batches.seal_batch(c, batch_id, count, DIGEST)
    with database.read() as c:
        ids = list(c.execute(select(jobs.c.id).where(jobs.c.batch_id == batch_id).order_by(jobs.c.line)).scalars())
    return batch_id, ids


def worker(worker_id: str = "w1", **changes: Any) -> NewWorker:
    values: dict[str, Any] = {
        "id": worker_id,
        "hostname": "host",
        "pid": 4242,
        "device": "cpu",
        "target_model": "target",
        "draft_model": None,
        "slots": 4,
    }
    return NewWorker(**{**values, **changes})


def register(database: Database, *ids: str) -> None:
    with database.write() as c:
        for worker_id in ids:
            workers.register_worker(c, worker(worker_id), now())


def take(database: Database, job_id: int, worker_id: str = "w1") -> ClaimedJob | None:
    with database.write() as c:
        return claims.claim(c, job_id, worker_id=worker_id, now=now())


def must_take(database: Database, job_id: int, worker_id: str = "w1") -> ClaimedJob:
    claimed = take(database, job_id, worker_id)
    assert claimed is not None
    return claimed


def ended(claimed: ClaimedJob, worker_id: str = "w1") -> FinishedJob:
    return FinishedJob(claimed.id, claimed.lease, worker_id)


def result_row(**changes: Any) -> ResultRow:
    values: dict[str, Any] = {
        "output_text": "an answer",
        "finish_reason": "stop",
        "prompt_tokens": 5,
        "cached_prompt_tokens": 1,
        "completion_tokens": 7,
        "queue_seconds": 0.25,
        "ttft_seconds": 0.5,
        "decode_seconds": 1.5,
        "total_seconds": 2.0,
        "tokens_per_second": 3.5,
        "draft_tokens": 8,
        "accepted_tokens": 6,
        "acceptance_rate": 0.75,
        "mean_acceptance_length": 3.5,
        "target_model": "target",
        "draft_model": "draft",
        "device": "cpu",
        "dtype": "float32",
    }
    if changes.get("choice"):
        values.update(prompt_tokens=0, cached_prompt_tokens=0)
    return ResultRow(**{**values, **changes})


def succeed(database: Database, claimed: ClaimedJob, worker_id: str = "w1", **changes: Any) -> bool:
    with database.write() as c:
        return claims.finish_succeeded(c, ended(claimed, worker_id), [result_row(**changes)], now())


def fail(database: Database, claimed: ClaimedJob, worker_id: str = "w1", code: str = "engine_error") -> bool:
    with database.write() as c:
        return claims.finish_failed(c, ended(claimed, worker_id), code, "it broke", now())


def get_job(c: Connection, job_id: int) -> JobResult:
    """One job in any state, with its first answer if there is one."""
    return read_job(c, job_id)


def status(database: Database, batch_id: str) -> BatchStatus:
    with database.read() as c:
        check_counters(c, batch_id)
        return batch_status(c, batch_id)


def counts(database: Database, batch_id: str) -> dict[str, int]:
    """The states that occur, after checking them against the rows."""
    return {state.value: count for state, count in status(database, batch_id).counts.items() if count}


def check_counters(c: Connection, batch_id: str) -> None:
    """Counters and rows must say the same, and result rows must belong to jobs that have an answer."""
    seen = batch_status(c, batch_id)
    query = select(jobs.c.state, jobs.c.error_code, jobs.c.tries).where(jobs.c.batch_id == batch_id)
    rows = c.execute(query).all()
    assert sum(row.tries for row in rows) == seen.refused
    assert Counter(row.state for row in rows) == {s.value: n for s, n in seen.counts.items() if n}
    assert Counter(row.error_code for row in rows if row.state == "failed") == seen.error_counts
    outcome = case((jobs.c.state == "failed", jobs.c.error_code), else_=jobs.c.state)
    joined = c.execute(
        select(
            outcome.label("outcome"),
            func.count(jobs.c.id.distinct()).label("jobs"),
            func.sum(case((results.c.from_cache.is_(None), results.c.completion_tokens), else_=0)).label("tokens"),
            func.sum(case((results.c.from_cache.is_(None), results.c.cached_prompt_tokens), else_=0)).label("shared"),
            func.count(case((results.c.choice == 0, results.c.from_cache))).label("from_cache"),
        )
        .join_from(jobs, results, results.c.job_id == jobs.c.id)
        .where(jobs.c.batch_id == batch_id)
        .group_by(outcome)
    ).all()
    with_answers = {row.outcome: row.jobs for row in joined}
    assert with_answers.pop("not_accepted", 0) == seen.error_counts.get("not_accepted", 0)
    assert with_answers == ({"succeeded": found} if (found := seen.counts[JobState.SUCCEEDED]) else {})
    succeeded = [row for row in joined if row.outcome == "succeeded"]
    assert sum(row.tokens for row in succeeded) == seen.completion_tokens
    assert sum(row.shared for row in succeeded) == seen.cached_prompt_tokens
    assert sum(row.from_cache for row in succeeded) == seen.from_cache
