"""Workers in containers of one machine: one host name, and each the first process of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.faults.fork_server import LAUNCHER
from tests.acceptance.faults.plan import Plan
from tests.acceptance.faults.progress import wait_ended
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import ROOT, WorkerProcess

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation

# What a container runtime gives a container, as far as it matters here.
CONTAINER = ("unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
NAMED = 'hostname helix-worker && exec "$@"'
WORKERS = 5


def _start(installation: Installation, number: int) -> WorkerProcess:
    """Start a worker as the first process of a container."""
    log = installation.new_log()
    own = installation.temporary / f"container-{number}"
    own.mkdir()
    environment = installation.environment | {
        # A container sees no other's locks.
        "HELIX_LOCK_DIR": str(own),
        "PYTHONPATH": str(ROOT),
        "HELIX_FAKE_STEP_SECONDS": "0.05",
        "HELIX_FAKE_EXECUTIONS": str(installation.executions_file),
    }
    plan = Plan(time_limits=installation.time_limits)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*CONTAINER, "sh", "-c", NAMED, "sh", sys.executable, *LAUNCHER, plan.to_json(), "worker"],
            cwd=installation.temporary,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return installation.adopt(WorkerProcess(process, log), ready=False)


@scenario(
    "five containers of one host name",
    quick=Size(jobs=60, faults=0),
    quick_on=("postgres",),
    full=Size(jobs=2_000, faults=0),
)
def five(installation: Installation, size: Size) -> Outcome:
    """Nobody dies, and nobody may be taken for dead; they start one after another, as a service is scaled up."""
    allowed = subprocess.run([*CONTAINER, "hostname", "helix-worker"], capture_output=True, check=False)
    if allowed.returncode != 0:
        pytest.skip("no new namespaces for this user")
    batch = installation.accept(size.jobs)
    workers = []
    for number in range(WORKERS):
        workers.append(_start(installation, number))
        workers[-1].wait_ready()
        wait_ended(installation, batch, number)
    installation.wait_done(batch, timeout=installation.patience + size.jobs / 20)
    broken = [f"a living worker was given up: {worker.log}" for worker in workers if "is lost" in worker.log]
    rows = installation.rows(batch.batch_id)
    if any(row.attempts != 1 for row in rows):
        broken.append("a job was run more than once")
    if {(row.hostname, row.pid) for row in installation.worker_rows()} != {("helix-worker", 1)}:
        broken.append("the workers were no containers")
    return Outcome(accepted=[batch], faults=0, note=f"{WORKERS} workers", broken=tuple(broken))
