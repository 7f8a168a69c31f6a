"""SIGKILL of the worker at random moments.

What a dead worker ran comes first again. A job in hand at three deaths in a row fails at its cap, as it should; so that
none does, each worker here lives at least until what it took first has ended.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from helix_jobs.bench.percentiles import percentile
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation
    from tests.acceptance.faults.oracle import Accepted
    from tests.worker_box import WorkerProcess

STEP_SECONDS = "0.02"
# Until a worker of a fresh interpreter takes jobs, and the scheduler of a busy machine is kind again.
START_SECONDS = 20.0
# Beyond the moment counted in jobs, so that kills fall anywhere within an engine step.
LONGEST_MORE = 0.05
# What the lease's end may take on top, as promised.
MARGIN_SECONDS = 15.0


@dataclass
class Recoveries:
    """Follows when what killed workers had in hand is in hand again."""

    installation: Installation
    seconds: list[float] = field(default_factory=list)
    _pending: list[tuple[float, dict[int, int]]] = field(default_factory=list)

    def kill(self, worker: WorkerProcess) -> None:
        worker.kill()
        self._pending.append((time.monotonic(), self.installation.held_by(worker)))

    def wait_ended(self, batch: Accepted, count: int) -> None:
        """Wait until so many jobs have ended."""
        deadline = time.monotonic() + self.installation.patience
        left = len(batch.prompts)
        while (now_left := self.installation.unfinished(batch)) > len(batch.prompts) - count:
            if now_left < left:
                left, deadline = now_left, time.monotonic() + self.installation.patience
            assert time.monotonic() < deadline, "nothing goes on"
            self.follow(0.05)

    def wait_busy(self, worker: WorkerProcess) -> None:
        """Wait until a worker has ended what it took first."""
        first: dict[int, int] = {}

        def took() -> bool:
            self.look()
            first.update(self.installation.held_by(worker))
            return bool(first)

        def ended() -> bool:
            self.look()
            return self.installation.taken_over(first)

        wait_until(took, lambda: f"nothing runs: {worker.log}")
        wait_until(ended, lambda: f"nothing ends: {worker.log}")

    def look(self) -> None:
        now = time.monotonic()
        for killed in list(self._pending):
            if self.installation.taken_over(killed[1]):
                self._pending.remove(killed)
                self.seconds.append(now - killed[0])

    def follow(self, seconds: float) -> None:
        """Look for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            time.sleep(0.02)

    def follow_all(self) -> None:
        deadline = time.monotonic() + self.installation.patience
        while self._pending:
            assert time.monotonic() < deadline, f"never taken over: {self._pending}"
            self.follow(0.1)


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
    return sorted(dice.sample(range(size.jobs * 9 // 10), size.faults))
