"""A worker without descriptors loses its connections. It ends for its supervisor or waits, and its jobs run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.faults.progress import ended, wait_ended, wait_resumed
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import comes_true

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation

WITHOUT_SECONDS = 30.0
STEP_SECONDS = "0.5"
# What four slots end at such steps, each third job asking for three answers, is 2.4.
LEAST_JOBS_PER_SECOND = 2
# Where Celery does not come back by itself, the watchdog sees to it after a minute, and once more after another.
RESUME_SECONDS = 180.0


@scenario("descriptors exhausted", full=Size(jobs=1_000, faults=6))
def exhausted(installation: Installation, size: Size) -> Outcome:
    """They are there again some seconds later. One that ended until then asked for another start with its exit code."""
    if sys.platform != "linux":
        pytest.skip("prlimit is Linux's")
    import resource

    batch = installation.accept(size.jobs)
    recoveries, broken = [], []
    worker = installation.start(fake_step_seconds=STEP_SECONDS, shutdown_grace="1")
    exits = 0
    for _ in range(size.faults):
        wait_ended(installation, batch, ended(installation, batch) + 4)
        soft, hard = resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (3, hard))
        with installation.redis.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        comes_true(lambda worker=worker: worker.process.poll() is not None, WITHOUT_SECONDS)
        if (code := worker.process.poll()) is None:
            resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
        else:
            exits += 1
            if code != 1:
                broken.append(f"the worker ended with {code}: {worker.log}")
            worker = installation.start(fake_step_seconds=STEP_SECONDS, shutdown_grace="1")
        recoveries.append(wait_resumed(installation, worker, patience=RESUME_SECONDS))
    assert ended(installation, batch) < size.jobs, "the jobs were done before the last fault"
    installation.wait_done(batch, timeout=installation.patience + size.jobs / LEAST_JOBS_PER_SECOND)
    note = f"{WITHOUT_SECONDS:g} s without; {exits} times the worker ended"
    return Outcome(accepted=[batch], faults=size.faults, recoveries=recoveries, note=note, broken=tuple(broken))
