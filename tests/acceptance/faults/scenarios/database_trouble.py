"""The database takes no writes for a while: locked, full, gone. Nothing is acknowledged without a commit, and work goes
on when it is back.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from tests.acceptance.faults.full_disk import SmallDisk
from tests.acceptance.faults.outages import locked_database, use_cluster
from tests.acceptance.faults.progress import ended, final_jobs, wait_ended
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation
    from tests.acceptance.faults.oracle import Accepted
    from tests.worker_box import WorkerProcess

# Until what was committed before has been acknowledged, where the database cannot be asked what that is.
SETTLE_SECONDS = 3.0


def _begin(installation: Installation, size: Size) -> tuple[Accepted, WorkerProcess]:
    step_seconds = 0.05 if installation.fork_server is not None else 0.25
    batch = installation.accept(size.jobs)
    worker = installation.start(fake_step_seconds=str(step_seconds))
    wait_ended(installation, batch, 4)
    return batch, worker


def _resumed(installation: Installation, worker: WorkerProcess, batch: Accepted, before: int) -> float:
    """Wait until more than ``before`` jobs have ended; returns how long it took."""
    began = time.monotonic()
    wait_ended(installation, batch, before + 1)
    assert worker.process.poll() is None, worker.log
    return time.monotonic() - began


def _end(installation: Installation, batch: Accepted, faults: int, recoveries: list[float], note: str = "") -> Outcome:
    installation.wait_done(batch, timeout=installation.patience + len(batch.prompts) / 4)
    return Outcome(accepted=[batch], faults=faults, recoveries=recoveries, note=note)


@scenario(
    "database locked for 30 s", quick=Size(jobs=100, faults=1), quick_on=("sqlite",), full=Size(jobs=600, faults=2)
)
def locked(installation: Installation, size: Size) -> Outcome:
    """By another process."""
    seconds = 5.0 if installation.fork_server is not None else 30.0
    can_be_read = installation.settings.database_url.startswith("sqlite")
    batch, worker = _begin(installation, size)
    recoveries = []
    for _ in range(size.faults):
        with locked_database(installation):
            time.sleep(SETTLE_SECONDS)
            delivered = installation.redis.unacked_jobs()
            time.sleep(seconds - SETTLE_SECONDS)
            assert delivered, "nothing was in hand"
            gone = delivered.keys() - installation.redis.unacked_jobs().keys()
            committed = final_jobs(installation) if gone and can_be_read else set()
            assert {delivered[tag] for tag in gone} <= committed, "acknowledged without a commit"
        recoveries.append(_resumed(installation, worker, batch, ended(installation, batch)))
    return _end(installation, batch, size.faults, recoveries)


@scenario("disk full", full=Size(jobs=1_000, faults=2))
def disk_full(installation: Installation, size: Size) -> Outcome:
    """The database lies on a file system of its own, which another file fills to the last byte."""
    on_postgres = not installation.settings.database_url.startswith("sqlite")
    disk = SmallDisk(megabytes=200 if on_postgres else 32)
    installation.stack.callback(disk.remove)
    if on_postgres:
        use_cluster(installation, disk.path)
    else:
        url = f"sqlite:///{disk.path / 'helix.db'}"
        installation.settings = dataclasses.replace(installation.settings, database_url=url)
    full = "No space left on device" if on_postgres else "disk is full"
    batch, worker = _begin(installation, size)
    recoveries = []
    for fault in range(size.faults):
        disk.fill()
        wait_until(lambda n=fault: worker.log.count(full) > n, lambda: f"never full: {worker.log}")
        delivered = installation.redis.unacked_jobs()
        time.sleep(20.0)
        gone = delivered.keys() - installation.redis.unacked_jobs().keys()
        assert {delivered[tag] for tag in gone} <= final_jobs(installation), "acknowledged without a commit"
        before = ended(installation, batch)
        assert before < size.jobs, "the jobs were done before the disk was full"
        disk.empty()
        recoveries.append(_resumed(installation, worker, batch, before))
    return _end(installation, batch, size.faults, recoveries, note="on a tmpfs")


@scenario(
    "Postgres restarted",
    quick=Size(jobs=60, faults=1),
    quick_on=("postgres",),
    full=Size(jobs=1_000, faults=4),
    databases=("postgres",),
)
def restarted(installation: Installation, size: Size) -> Outcome:
    """Crashed and shut down in turn; it stays away for a while."""
    cluster = use_cluster(installation)
    batch, worker = _begin(installation, size)
    recoveries = []
    for fault in range(size.faults):
        cluster.stop("fast" if fault % 2 else "immediate")
        time.sleep(SETTLE_SECONDS)
        delivered = installation.redis.unacked_jobs()
        time.sleep(1.0 if installation.fork_server is not None else 20.0)
        assert delivered, "nothing was in hand"
        assert delivered.keys() <= installation.redis.unacked_jobs().keys(), "acknowledged without a commit"
        cluster.start()
        recoveries.append(_resumed(installation, worker, batch, ended(installation, batch)))
    return _end(installation, batch, size.faults, recoveries)
