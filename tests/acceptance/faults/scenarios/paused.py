"""Pause and resume at random moments, with workers killed as the pause begins and messages lost within it."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

from tests.acceptance.faults.recoveries import Recoveries
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import flush, wait_until

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation
    from tests.acceptance.faults.oracle import Accepted

STEP_SECONDS = "0.02"
PROBE_JOBS = 4


@scenario(
    "paused and resumed, workers killed meanwhile",
    quick=Size(jobs=100, faults=3),
    quick_on=("sqlite",),
    full=Size(jobs=10_000, faults=24),
)
def paused(installation: Installation, size: Size) -> Outcome:
    """A worker drains a batch that is paused again and again, and other batches meanwhile.

    Within a pause what ran has ended or gone back, nothing begins, and other batches have the slots. Of three pauses
    one begins with the worker's death, in one the broker loses all messages, and in one the worker is replaced.
    """
    dice = random.Random(13)
    batch = installation.accept(size.jobs)
    recoveries = Recoveries(installation)
    broken: list[str] = []
    others: list[Accepted] = []
    worker = installation.start(fake_step_seconds=STEP_SECONDS)
    with installation.client() as client:
        for number, moment in enumerate(sorted(dice.sample(range(size.jobs * 6 // 10), size.faults))):
            recoveries.wait_ended(batch, moment)
            recoveries.wait_busy(worker)
            recoveries.follow(dice.uniform(0.0, 0.05))
            waiting = client.pause(batch.batch_id)
            if number % 3 == 0:
                recoveries.kill(worker)
                worker = installation.start(fake_step_seconds=STEP_SECONDS)
            _wait_nothing_runs(installation, batch)
            held = _leases(installation, batch)
            if number % 3 == 1:
                flush(installation.redis.url)
            others.append(_have_others_done(installation))
            if (state := client.status(batch.batch_id).state) != "paused":
                broken.append(f"the batch is {state} within a pause of {waiting} jobs")
            if _leases(installation, batch) != held:
                broken.append("a job began within a pause")
            if number % 3 == 2:
                worker.send(signal.SIGTERM)
                worker.wait()
                worker = installation.start(fake_step_seconds=STEP_SECONDS)
            client.resume(batch.batch_id)
    assert installation.unfinished(batch), "the jobs were done before the last pause"
    recoveries.follow_all()
    installation.wait_done(batch, timeout=installation.patience + size.jobs / 20)
    return Outcome(accepted=[batch, *others], faults=size.faults, recoveries=recoveries.seconds, broken=tuple(broken))


def _wait_nothing_runs(installation: Installation, batch: Accepted) -> None:
    wait_until(
        lambda: not installation.states(batch.batch_id).get("running", 0),
        "jobs of a paused batch still run",
        installation.patience,
    )


def _leases(installation: Installation, batch: Accepted) -> dict[int, int]:
    return {row.id: row.lease for row in installation.rows(batch.batch_id)}


def _have_others_done(installation: Installation) -> Accepted:
    other = installation.accept(PROBE_JOBS)
    installation.wait_done(other)
    # A worker that would begin a job of the paused batch has had the time to.
    time.sleep(0.2)
    return other
