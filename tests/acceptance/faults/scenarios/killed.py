"""SIGKILL of the worker at random moments.

What a dead worker ran comes first again. A job in hand at three deaths in a row fails at its cap, as it should; so that
none does, each worker here lives at least until what it took first has ended.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from helix_jobs.bench.percentiles import percentile
from tests.acceptance.faults.recoveries import Recoveries
from tests.acceptance.faults.scenario import Outcome, Size, scenario

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation
    from tests.acceptance.faults.oracle import Accepted

STEP_SECONDS = "0.02"
# Until a worker of a fresh interpreter takes jobs, and the scheduler of a busy machine is kind again.
START_SECONDS = 20.0
# Beyond the moment counted in jobs, so that kills fall anywhere within an engine step.
LONGEST_MORE = 0.05
# What the lease's end may take on top, as promised.
MARGIN_SECONDS = 15.0


def kill_one_after_another(installation: Installation, batch: Accepted, size: Size, dice: random.Random) -> list[float]:
    """Kill each worker at a moment of its own and start its successor; the last one ends the batch.

    Returns the seconds until what a killed worker had in hand was in hand again.
    """
    recoveries = Recoveries(installation)
    for moment in _moments(dice, size):
        worker = installation.start(fake_step_seconds=STEP_SECONDS)
        recoveries.wait_ended(batch, moment)
        recoveries.wait_busy(worker)
        recoveries.follow(dice.uniform(0.0, LONGEST_MORE))
        recoveries.kill(worker)
    assert installation.unfinished(batch), "the jobs were done before the last kill"
    installation.start()
    recoveries.follow_all()
    installation.wait_done(batch, timeout=installation.patience + size.jobs / 20)
    return recoveries.seconds


@scenario(
    "worker killed, successor on the same host",
    quick=Size(jobs=100, faults=3),
    quick_on=("sqlite",),
    full=Size(jobs=10_000, faults=50),
)
def same_host(installation: Installation, size: Size) -> Outcome:
    """The successor starts at once, as under a supervisor, and takes over at once."""
    batch = installation.accept(size.jobs)
    seconds = kill_one_after_another(installation, batch, size, random.Random(1))
    p95 = percentile(sorted(seconds), 0.95)
    assert p95 < START_SECONDS, "the successor waited for the lease"
    return Outcome(accepted=[batch], faults=size.faults, recoveries=seconds)


@scenario("worker killed, others on other hosts", full=Size(jobs=10_000, faults=50))
def other_host(installation: Installation, size: Size) -> Outcome:
    """A worker lives, and beside it one after another is killed, each on a host where nobody knows that it is dead.

    A lease ends by the clock of one who has watched for as long, so whoever watches must live that long.
    """
    dice = random.Random(2)
    batch = installation.accept(size.jobs)
    recoveries = Recoveries(installation)
    installation.start(host="host-0", fake_step_seconds=STEP_SECONDS)
    for n, moment in enumerate(_moments(dice, size), start=1):
        doomed = installation.start(host=f"host-{n}", fake_step_seconds=STEP_SECONDS)
        recoveries.wait_ended(batch, moment)
        recoveries.wait_busy(doomed)
        recoveries.follow(dice.uniform(0.0, LONGEST_MORE))
        recoveries.kill(doomed)
    recoveries.follow_all()
    installation.wait_done(batch, timeout=installation.patience + size.jobs / 20)
    p95 = percentile(sorted(recoveries.seconds), 0.95)
    assert p95 < installation.lease_seconds + MARGIN_SECONDS
    return Outcome(accepted=[batch], faults=size.faults, recoveries=recoveries.seconds)


def _moments(dice: random.Random, size: Size) -> list[int]:
    """How many jobs have ended when a worker is killed: whatever the machine's speed, the jobs outlast the faults."""
    return sorted(dice.sample(range(size.jobs - max(40, size.jobs // 10)), size.faults))
