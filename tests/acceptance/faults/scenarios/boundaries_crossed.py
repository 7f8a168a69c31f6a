"""SIGKILL exactly between two actions of the protocol."""

from __future__ import annotations

import itertools
import json
import random
import signal
import time
from typing import TYPE_CHECKING

from tests.acceptance.faults.boundaries import BOUNDARIES
from tests.acceptance.faults.oracle import Accepted, line_of
from tests.acceptance.faults.plan import Plan
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from helix_jobs.broker.publisher import CeleryPublisher
    from tests.acceptance.faults.installation import Installation
    from tests.worker_box import WorkerProcess

# A client crosses these, a worker the others, ``published`` both.
OF_THE_CLIENT = ("stored", "published")
# With so many jobs finished, those in hand at the last death are done: none meets a third one.
IN_HAND = 7
FREEZE_ATTEMPTS = 20


@scenario(
    "killed at each boundary",
    quick=Size(jobs=120, faults=len(BOUNDARIES) + 1),
    quick_on=("sqlite",),
    full=Size(jobs=1_200, faults=5 * (len(BOUNDARIES) + 1)),
)
def each_boundary(installation: Installation, size: Size) -> Outcome:
    """One death after another, each at the next boundary; the successor starts on the same host, at once.

    In the quick form it is the one to die at the next boundary.
    """
    dice = random.Random(3)
    share = size.jobs // size.faults
    quick = installation.fork_server is not None
    accepted: list[Accepted] = []
    recoveries: list[float] = []
    deaths = [("client", name) for name in OF_THE_CLIENT] + [
        ("worker", name) for name in BOUNDARIES if name != "stored"
    ]
    for who, boundary in itertools.islice(itertools.cycle(deaths), size.faults):
        if who == "client":
            accepted.append(die_submitting(installation, boundary, share))
        else:
            accepted.append(die_working(installation, boundary, share, dice.randint(IN_HAND, share)))
        died_at = time.monotonic()
        if not quick:
            successor = installation.start()
            installation.wait_done(accepted[-1])
            recoveries.append(time.monotonic() - died_at)
            successor.kill()
    installation.start()
    installation.wait_done(*accepted)
    return Outcome(accepted=accepted, faults=size.faults, recoveries=recoveries)


def die_submitting(installation: Installation, boundary: str, count: int) -> Accepted:
    """Have ``submit.py`` die at a boundary behind the commit, which is where a batch is accepted."""
    prompts = tuple(f"client {boundary} {n}" for n in range(count))
    file = installation.temporary / "prompts.jsonl"
    file.write_text(
        "".join(f"{json.dumps(line_of(prompt, n))}\n" for n, prompt in enumerate(prompts)), encoding="utf-8"
    )
    client = installation.start_submit(Plan(die_at=boundary), str(file))
    assert client.wait() == -signal.SIGKILL, client.log
    with installation.client() as helix:
        return Accepted(helix.list(1)[0].id, prompts)


def die_working(installation: Installation, boundary: str, count: int, passing: int) -> Accepted:
    """Have a worker die at a boundary, in the middle of a batch."""
    if boundary == "published":
        # At its start a worker that is alone publishes all that waits; later ones come published by the client.
        accepted = installation.accept(count)
        worker = installation.start_doomed(Plan(die_at=boundary))
    else:
        worker = installation.start_doomed(Plan(die_at=boundary, after=passing))
        accepted = installation.accept(count)
    assert worker.wait() == -signal.SIGKILL, worker.log
    return accepted


@scenario(
    "killed with a popped message, frozen in BRPOP",
    quick=Size(jobs=3, faults=1),
    quick_on=("postgres",),
    full=Size(jobs=50, faults=5),
)
def frozen_in_brpop(installation: Installation, size: Size) -> Outcome:
    """The server hands a message to a worker that never reads it; its successor is on another host."""
    publisher = installation.publisher()
    share = size.jobs // size.faults
    accepted: list[Accepted] = []
    recoveries: list[float] = []
    broken: list[str] = []
    for n in range(size.faults):
        worker = installation.start(host=f"frozen-{n}")
        batch = _freeze_with_a_message(installation, worker, publisher, share, accepted)
        worker.kill()
        died_at = time.monotonic()
        if installation.redis.unacked(installation.names):
            broken.append("the popped message was in unacked: nothing was lost")
        successor = installation.start(host=f"successor-{n}")
        installation.wait_done(batch)
        recoveries.append(time.monotonic() - died_at)
        if n < size.faults - 1:
            successor.send(signal.SIGTERM)
            assert successor.wait() == 0, successor.log
    publisher.close()
    return Outcome(accepted=accepted, faults=size.faults, recoveries=recoveries, broken=tuple(broken))


def _freeze_with_a_message(
    installation: Installation,
    worker: WorkerProcess,
    publisher: CeleryPublisher,
    count: int,
    accepted: list[Accepted],
) -> Accepted:
    """Stop a worker in BRPOP, submit, and make sure that the server has popped a message for it."""
    for _ in range(FREEZE_ATTEMPTS):
        wait_until(lambda: _blocked_clients(installation) > 0, "no BRPOP")
        worker.send(signal.SIGSTOP)
        accepted.append(installation.accept(count))
        if publisher.depth() == count - 1:
            return accepted[-1]
        # Its BRPOP had timed out before the message came.
        worker.send(signal.SIGCONT)
        installation.wait_done(accepted[-1])
    raise AssertionError("never frozen in BRPOP")


def _blocked_clients(installation: Installation) -> int:
    with installation.redis.client() as client:
        return int(client.info("clients")["blocked_clients"])
