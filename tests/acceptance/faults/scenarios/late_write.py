"""A worker stands still past its lease, another takes over, and the first one writes after all."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

import psutil
from plan import Plan
from scenario import Outcome, Size, scenario
from worker_box import wait_until

if TYPE_CHECKING:
    from installation import Installation
    from worker_box import WorkerProcess

SLOW_STEP = "0.3"
FENCED = "fenced: the lease has moved on"
LATE_SECONDS = 3.0


@scenario(
    "stopped past its lease, then continued",
    quick=Size(jobs=24, faults=1),
    quick_on=("postgres",),
    full=Size(jobs=240, faults=6),
)
def late_write(installation: Installation, size: Size) -> Outcome:
    """SIGSTOP between generating a result and writing it; SIGCONT while the successor generates it, or has written it.

    Every other time the one, and the other.
    """
    dice = random.Random(4)
    share = size.jobs // size.faults
    accepted, recoveries = [], []
    fenced = 0
    successor: WorkerProcess | None = None
    for n in range(size.faults):
        late = installation.start(
            Plan(freeze_at="generated", after=dice.randint(1, share // 4)), host=f"late-{n}", log_level="debug"
        )
        accepted.append(batch := installation.accept(share))
        wait_until(lambda late=late: _stopped(late), lambda late=late: f"it does not freeze: {late.log}")
        stopped_at = time.monotonic()
        held = installation.held_by(late)
        if successor is None:
            successor = installation.start(host="successor", fake_step_seconds=SLOW_STEP)
        wait_until(lambda held=held: installation.taken_over(held), "nobody takes over", installation.patience)
        recoveries.append(time.monotonic() - stopped_at)
        if n % 2:
            installation.wait_done(batch)
        else:
            _wait_running_again(installation, held, successor)
        late.send(signal.SIGCONT)
        fenced += _count_fenced(late)
        installation.wait_done(batch)
        late.kill()
    return Outcome(
        accepted=accepted,
        faults=size.faults,
        recoveries=recoveries,
        note=f"{fenced} late writes fenced",
        broken=() if fenced >= size.faults else ("a late write was not fenced, or not counted",),
    )


def _wait_running_again(installation: Installation, held: dict[int, int], successor: WorkerProcess) -> None:
    wait_until(lambda: held.keys() & installation.held_by(successor).keys(), "nobody runs them again")


def _stopped(worker: WorkerProcess) -> bool:
    return psutil.Process(worker.process.pid).status() == psutil.STATUS_STOPPED


def _count_fenced(worker: WorkerProcess) -> int:
    """Give the worker time to write, then count what it counted."""
    deadline = time.monotonic() + LATE_SECONDS
    while FENCED not in worker.log and time.monotonic() < deadline:
        time.sleep(0.05)
    return worker.log.count(FENCED)
