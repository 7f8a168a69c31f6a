"""A worker stands still past its lease, another takes over, and the first one writes after all."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

import psutil

from tests.acceptance.faults.plan import Plan
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import comes_true, wait_until

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation
    from tests.worker_box import WorkerProcess

SLOW_STEP = "0.3"
FENCED = "fenced: the lease has moved on"
LATE_SECONDS = 3.0


@scenario(
    "stopped past its lease, then continued",
    quick=Size(jobs=12, faults=1),
    quick_on=("postgres",),
    full=Size(jobs=240, faults=6),
)
def late_write(installation: Installation, size: Size) -> Outcome:
    """SIGSTOP between generating a result and writing it."""
    return _stop_and_continue(installation, size, "generated")


@scenario(
    "stopped in the middle of a write, then continued",
    # On SQLite it locks everybody out for as long as it stands; they wait.
    databases=("postgres",),
    full=Size(jobs=240, faults=6),
)
def torn_write(installation: Installation, size: Size) -> Outcome:
    """SIGSTOP between writing a result and committing it: the rows are locked."""
    return _stop_and_continue(installation, size, "finishing")


def _stop_and_continue(installation: Installation, size: Size, boundary: str) -> Outcome:
    """SIGCONT while the successor generates the job again or, every other time, has written it."""
    dice = random.Random(4)
    share = size.jobs // size.faults
    accepted, recoveries = [], []
    fenced = 0
    successor: WorkerProcess | None = None
    for n in range(size.faults):
        plan = Plan(freeze_at=boundary, after=dice.randint(1, share // 4))
        late = installation.start(plan, host=f"late-{n}", log_level="debug")
        accepted.append(batch := installation.accept(share))
        _wait_stopped(late)
        stopped_at = time.monotonic()
        held = installation.held_by(late)
        if successor is None:
            successor = installation.start(host="successor", fake_step_seconds=SLOW_STEP)
        _wait_taken_over(installation, held)
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


def _wait_stopped(worker: WorkerProcess) -> None:
    process = psutil.Process(worker.process.pid)
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, lambda: f"it does not stop: {worker.log}")


def _wait_taken_over(installation: Installation, held: dict[int, int]) -> None:
    wait_until(lambda: installation.taken_over(held), "nobody takes over", installation.patience)


def _wait_running_again(installation: Installation, held: dict[int, int], successor: WorkerProcess) -> None:
    wait_until(lambda: held.keys() & installation.held_by(successor).keys(), "nobody runs them again")


def _count_fenced(worker: WorkerProcess) -> int:
    """Give the worker time to write, then count what it counted."""
    comes_true(lambda: FENCED in worker.log, LATE_SECONDS)
    return worker.log.count(FENCED)
