"""A worker is asked to stop, politely or not."""

from __future__ import annotations

import itertools
import signal
import time
from typing import TYPE_CHECKING

from celery import Celery

from helix_jobs.broker.publisher import QueueNames, transport_options
from helix_jobs.time_limits import DEFAULT_TIME_LIMITS
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation
    from tests.worker_box import WorkerProcess

WAYS = ("SIGTERM", "soft shutdown", "Ctrl-C", "Ctrl-C twice")
# In the first prompt of every batch.
ENDLESS = "p0-0"
# On top of the grace time: handing back, and leaving.
LEAVE_SECONDS = 8.0


@scenario(
    "asked to stop in four ways",
    quick=Size(jobs=40, faults=len(WAYS)),
    quick_on=("sqlite",),
    full=Size(jobs=2_400, faults=6 * len(WAYS)),
)
def stopped(installation: Installation, size: Size) -> Outcome:
    """Each batch has a job that never ends, which must be handed back, and many that would go on for long."""
    installation.time_limits = DEFAULT_TIME_LIMITS  # no lease need end
    share = size.jobs // size.faults
    grace = 1 if installation.fork_server is not None else 5
    accepted, exits, broken = [], [], []
    for way in itertools.islice(itertools.cycle(WAYS), size.faults):
        worker = installation.start(fake_step_seconds="0.05", fake_hang=ENDLESS, shutdown_grace=str(grace))
        accepted.append(installation.accept(share))
        wait_until(lambda worker=worker: installation.held_by(worker), "nothing runs")
        asked_at = time.monotonic()
        _ask(way, worker, installation)
        code = worker.wait(grace + 60.0)
        exits.append(time.monotonic() - asked_at)
        allowed = LEAVE_SECONDS + (0 if way == "Ctrl-C twice" else grace)
        if exits[-1] > allowed:
            broken.append(f"{way}: gone after {exits[-1]:.1f} s, the grace time is {grace} s")
        if code != (130 if way == "Ctrl-C twice" else 0):
            broken.append(f"{way}: exit code {code}: {worker.log}")
        if left := installation.held_by(worker):
            broken.append(f"{way}: {len(left)} leases left behind")
    installation.start()
    installation.wait_done(*accepted, timeout=installation.patience + size.jobs / 20)
    counted = sum(row.attempts != 1 for batch in accepted for row in installation.rows(batch.batch_id))
    if counted:
        broken.append(f"{counted} jobs paid for a hand-back with an attempt")
    return Outcome(
        accepted=accepted,
        faults=size.faults,
        recoveries=exits,
        note=f"recovery is the exit; grace time {grace} s",
        broken=tuple(broken),
    )


def _ask(way: str, worker: WorkerProcess, installation: Installation) -> None:
    if way == "SIGTERM":
        worker.send(signal.SIGTERM)
    elif way == "soft shutdown":
        _control_shutdown(installation.redis.url, installation.names)
    else:
        worker.send(signal.SIGINT)
        if way == "Ctrl-C twice":
            wait_until(lambda: " s to finish" in worker.log, "the first one is not noticed")
            worker.send(signal.SIGINT)


def _control_shutdown(url: str, names: QueueNames) -> None:
    """``celery control shutdown``."""
    app = Celery("operator", broker=url)
    app.conf.update(control_exchange=names.queue, broker_transport_options=transport_options(url, names))
    app.control.shutdown()
    app.close()
