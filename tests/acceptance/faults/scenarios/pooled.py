"""Postgres behind PgBouncer in transaction mode, which dies and comes back, as a worker does."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from tests.acceptance.faults.outages import use_cluster
from tests.acceptance.faults.progress import ended, wait_ended, wait_resumed
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.pgbouncer import PgBouncer

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation


@scenario(
    "PgBouncer in transaction mode, killed and started again",
    quick=Size(jobs=100, faults=2),
    quick_on=("postgres",),
    full=Size(jobs=4_000, faults=8),
    databases=("postgres",),
)
def pooled(installation: Installation, size: Size) -> Outcome:
    """Two workers, a client and the oracle share three sessions; pooler and worker are killed in turn."""
    cluster = use_cluster(installation)
    pooler = PgBouncer(cluster.port)
    installation.stack.callback(pooler.stop)
    installation.settings = dataclasses.replace(installation.settings, database_url=pooler.url("postgres"))
    step = "0.05" if installation.fork_server is not None else "0.1"
    batch = installation.accept(size.jobs)
    lasting, victim = (installation.start(host=host, fake_step_seconds=step) for host in ("lasting", "other"))
    recoveries = []
    for fault in range(size.faults):
        wait_ended(installation, batch, ended(installation, batch) + size.jobs // (4 * size.faults))
        # Looked at through the pooler, so before it goes.
        assert ended(installation, batch) < size.jobs, "the jobs were done before the last fault"
        (victim if fault % 2 else pooler).kill()
        if fault % 2:
            victim = installation.start(host=f"other-{fault}", fake_step_seconds=step)
            continue
        time.sleep(0.5)
        pooler.start()
        recoveries.append(wait_resumed(installation, lasting))
    installation.wait_done(batch, timeout=installation.patience + size.jobs / 4)
    broken = tuple(
        f"its statements were mixed up: {worker.log}"
        for worker in installation.started
        if "prepared statement" in worker.log
    )
    return Outcome(accepted=[batch], faults=size.faults, recoveries=recoveries, broken=broken)
