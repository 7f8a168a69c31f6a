"""SIGKILL of the worker at random moments.

What a dead worker ran comes first again. A job in hand at three deaths in a row fails at its cap, as it should; so that
none does, each worker here lives until what it took first has ended, and then for a random time.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scenario import Outcome, Size, scenario
from worker_box import wait_until

from helix_jobs.bench.percentiles import percentile

if TYPE_CHECKING:
    from installation import Installation
    from worker_box import WorkerProcess

STEP_SECONDS = 0.02
# Until a worker of a fresh interpreter takes jobs, and the scheduler of a busy machine is kind again.
START_SECONDS = 20.0
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


@scenario(
    "worker killed, successor on the same host",
    quick=Size(jobs=100, faults=3),
    quick_on=("sqlite",),
    full=Size(jobs=10_000, faults=50),
)
def same_host(installation: Installation, size: Size) -> Outcome:
    """The successor starts at once, as under a supervisor, and takes over at once."""
    dice = random.Random(1)
    batch = installation.accept(size.jobs)
    recoveries = Recoveries(installation)
    for _ in range(size.faults):
        worker = installation.start(fake_step_seconds=str(STEP_SECONDS))
        recoveries.wait_busy(worker)
        recoveries.follow(dice.uniform(0.0, _life(size)))
        recoveries.kill(worker)
    assert installation.unfinished(batch), "the jobs were done before the last kill"
    installation.start()
    recoveries.follow_all()
    installation.wait_done(batch, timeout=installation.patience + size.jobs / 20)
    p95 = percentile(sorted(recoveries.seconds), 0.95)
    assert p95 < min(START_SECONDS, installation.lease_seconds + MARGIN_SECONDS), "the successor waited for the lease"
    return Outcome(accepted=[batch], faults=size.faults, recoveries=recoveries.seconds)


@scenario(
    "worker killed, others on other hosts",
    full=Size(jobs=10_000, faults=50),
)
def other_host(installation: Installation, size: Size) -> Outcome:
    """Two workers; one of them is killed again and again and starts on a new host, where nobody knows it is dead."""
    dice = random.Random(2)
    batch = installation.accept(size.jobs)
    recoveries = Recoveries(installation)
    alive = [installation.start(host=f"host-{n}", fake_step_seconds=str(STEP_SECONDS)) for n in range(2)]
    for n in range(size.faults):
        doomed = alive.pop(dice.randrange(2))
        recoveries.wait_busy(doomed)
        recoveries.follow(dice.uniform(0.0, _life(size)))
        recoveries.kill(doomed)
        alive.append(installation.start(host=f"host-{n + 2}", fake_step_seconds=str(STEP_SECONDS)))
    recoveries.follow_all()
    installation.wait_done(batch, timeout=installation.patience + size.jobs / 20)
    p95 = percentile(sorted(recoveries.seconds), 0.95)
    assert p95 < installation.lease_seconds + MARGIN_SECONDS
    return Outcome(accepted=[batch], faults=size.faults, recoveries=recoveries.seconds)


def _life(size: Size) -> float:
    """How long a worker lives at most, so that the jobs outlast the faults."""
    return 0.3 if size.jobs < 1000 else 1.5
