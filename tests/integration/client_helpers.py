"""Shorthands for the client's tests: prompts, what the database holds of them, and a worker that is played."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from helix_jobs.jobs import store
from helix_jobs.jobs.database import Database
from helix_jobs.jobs.schema import batches, jobs
from helix_jobs.jobs.store import FinishedJob, NewWorker, ResultRow

if TYPE_CHECKING:
    from helix_jobs.settings import Settings


def prompts(count: int, **fields: object) -> list[dict]:
    return [{"prompt": f"prompt {number}", "custom_id": f"id-{number}", **fields} for number in range(count)]


def lines(count: int, **fields: object) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in prompts(count, **fields))


def rows(helix: Settings) -> list:
    database = Database(helix.database_url)
    with database.read() as c:
        found = c.execute(select(jobs).order_by(jobs.c.batch_id, jobs.c.line)).all()
    database.dispose()
    return found


def batch_count(helix: Settings) -> int:
    database = Database(helix.database_url)
    with database.read() as c:
        found = c.execute(select(func.count()).select_from(batches)).scalar_one()
    database.dispose()
    return found


RESULT = ResultRow(
    output_text="an answer",
    finish_reason="stop",
    prompt_tokens=3,
    cached_prompt_tokens=0,
    completion_tokens=2,
    queue_seconds=0.1,
    ttft_seconds=0.1,
    decode_seconds=0.1,
    total_seconds=0.2,
    tokens_per_second=10.0,
    draft_tokens=4,
    accepted_tokens=2,
    acceptance_rate=0.5,
    mean_acceptance_length=2.0,
    target_model="t",
    draft_model=None,
    device="cpu",
    dtype="float32",
)


def work(helix: Settings, *, fail_lines: frozenset[int] = frozenset(), limit: int = 10**9) -> int:
    """Play a worker: claim and finish what is there."""
    database = Database(helix.database_url)
    now = datetime.now(UTC)
    with database.write() as c:
        worker = NewWorker(id="w1", hostname="h", pid=1, device="cpu", target_model="t", draft_model=None, slots=1)
        store.register_worker(c, worker, now)
        done = 0
        for job in store.publishable(c, limit):
            claimed = store.claim(c, job.id, worker_id="w1", now=now)
            if claimed is None:
                continue
            finished = FinishedJob(claimed.id, claimed.lease, "w1")
            if claimed.line in fail_lines:
                assert store.finish_failed(c, finished, "prompt_too_long", "too long", now)
            else:
                text = f"answer to line {claimed.line}"
                assert store.finish_succeeded(c, finished, replace(RESULT, output_text=text), now)
            done += 1
    database.dispose()
    return done
