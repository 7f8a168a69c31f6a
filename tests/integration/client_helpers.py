"""Shorthands for the client's tests: prompts, what the database holds of them, and a worker that is played."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from helix_jobs.storage import claims, publishing, workers
from helix_jobs.storage.database import Database
from helix_jobs.storage.records import FinishedJob, NewWorker
from helix_jobs.storage.schema import batches, jobs
from tests.store_helpers import result_row

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


def work(helix: Settings, *, fail_lines: frozenset[int] = frozenset(), limit: int = 10**9) -> int:
    """Play a worker: claim and finish what is there."""
    database = Database(helix.database_url)
    now = datetime.now(UTC)
    with database.write() as c:
        worker = NewWorker(id="w1", hostname="h", pid=1, device="cpu", target_model="t", draft_model=None, slots=1)
        workers.register_worker(c, worker, now)
        done = 0
        for job in publishing.publishable(c, limit):
            claimed = claims.claim(c, job.id, worker_id="w1", now=now)
            if claimed is None:
                continue
            finished = FinishedJob(claimed.id, claimed.lease, "w1")
            if claimed.line in fail_lines:
                assert claims.finish_failed(c, finished, "prompt_too_long", "too long", now)
            else:
                text = f"answer to line {claimed.line}"
                assert claims.finish_succeeded(c, finished, [result_row(output_text=text)], now)
            done += 1
    database.dispose()
    return done
