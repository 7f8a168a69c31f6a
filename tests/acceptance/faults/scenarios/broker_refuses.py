"""Redis answers "no": a failover has made it a replica, its memory is full, a right was withdrawn."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tests.acceptance.faults.progress import ended, wait_ended, wait_resumed
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation

# What is said to the server to break it, and to mend it.
REFUSALS: Final = (
    (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    (("ACL", "SETUSER", "default", "-brpop"), ("ACL", "SETUSER", "default", "+brpop")),
)
FULL_SECONDS: Final = 30.0


@scenario(
    'Redis answers "no"',
    quick=Size(jobs=60, faults=1),
    quick_on=("sqlite",),
    full=Size(jobs=600, faults=6),
)
def refuses(installation: Installation, size: Size) -> Outcome:
    """Running jobs are committed meanwhile; the worker stays, says it once each time, and goes on when it is mended."""
    quick = installation.fork_server is not None
    batch = installation.accept(size.jobs)
    worker = installation.start(fake_step_seconds="0.05" if quick else "0.25")
    wait_ended(installation, batch, 4)
    recoveries = []
    for fault in range(size.faults):
        break_it, mend_it = REFUSALS[fault % len(REFUSALS)]
        with installation.redis.client() as client:
            client.execute_command(*break_it)
            said = fault + 1
            wait_until(
                lambda said=said: worker.log.count("the broker refuses: ") >= said,
                lambda: f"it is not said: {worker.log}",
                installation.patience,
            )
            time.sleep(1.0 if quick else FULL_SECONDS)
            client.execute_command(*mend_it)
        recoveries.append(wait_resumed(installation, worker))
    assert ended(installation, batch) < len(batch.prompts), "the jobs were done before the last fault"
    installation.wait_done(batch, timeout=installation.patience + len(batch.prompts) / 4)
    assert worker.log.count("the broker refuses: ") == size.faults, worker.log
    return Outcome(accepted=[batch], faults=size.faults, recoveries=recoveries, note="replica, memory full, no right")
