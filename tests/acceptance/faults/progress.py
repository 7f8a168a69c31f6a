"""Seeing that work goes on."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from helix_jobs.storage.schema import jobs
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation
    from tests.acceptance.faults.oracle import Accepted
    from tests.worker_box import WorkerProcess

RESUME_SECONDS = 60.0


def ended(installation: Installation, batch: Accepted) -> int:
    """Jobs in a final state."""
    return len(batch.prompts) - installation.unfinished(batch)


def final_jobs(installation: Installation) -> set[int]:
    """Ids of the jobs whose final state is committed."""
    with installation.read() as c:
        return set(c.execute(select(jobs.c.id).where(jobs.c.finished_at.is_not(None))).scalars())


def wait_ended(installation: Installation, batch: Accepted, count: int) -> None:
    """Wait until so many jobs have ended."""
    wait_until(lambda: ended(installation, batch) >= count, f"{count} jobs do not end", installation.patience)


def wait_resumed(
    installation: Installation, worker: WorkerProcess, since: datetime | None = None, patience: float = RESUME_SECONDS
) -> float:
    """Wait until a job is claimed after ``since``, by default now; returns how many seconds that took.

    What a worker had been delivered before does not count once it is used up: a claim needs a message.
    """
    moment = since or datetime.now(UTC)
    began = time.monotonic()

    def claimed() -> bool:
        with installation.read() as c:
            latest = c.execute(select(func.max(jobs.c.claimed_at))).scalar_one()
        return latest is not None and latest > moment

    wait_until(claimed, lambda: f"the worker does not resume: {worker.log}", patience)
    assert worker.process.poll() is None, worker.log
    return time.monotonic() - began
