"""Answers are streamed to a hundred clients beside bulk work, while worker, server, broker or database go away.

Each stream has to be the stored answer, whole and without a piece twice, or to end with an error event.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.acceptance.faults.outages import locked_database, use_cluster
from tests.acceptance.faults.recoveries import Recoveries
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.acceptance.faults.stream_clients import (
    BROKEN,
    DONE,
    StreamClients,
    judge_streams,
    single_requests,
    unfinished_requests,
)
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.acceptance.faults.installation import Installation, ServerProcess
    from tests.acceptance.faults.oracle import Accepted

# A client for so many bulk jobs.
JOBS_PER_CLIENT = 10
STEP_SECONDS = "0.05"
# What a server tells whose database does not answer.
UNAVAILABLE = "unavailable"


@contextmanager
def _begun(
    installation: Installation, size: Size, *, has_keys: bool = False
) -> Iterator[tuple[Accepted, StreamClients, ServerProcess]]:
    """Bulk jobs are stored, and clients read one answer after another. A worker lives."""
    batch = installation.accept(size.jobs)
    server = installation.start_server()
    with StreamClients(server.address) as clients:
        clients.begin(size.jobs // JOBS_PER_CLIENT, has_keys=has_keys)
        yield batch, clients, server


def _wait_a_moment(installation: Installation, clients: StreamClients, dice: random.Random) -> None:
    """Wait until some more answers have ended, so that faults come at any moment of the others."""
    clients.wait_ended(dice.randint(1, 8), installation.patience)


def _end(
    installation: Installation,
    clients: StreamClients,
    batch: Accepted,
    size: Size,
    *,
    recoveries: list[float],
    may_end: Callable[[str], bool] = lambda _: False,
) -> Outcome:
    clients.finish(installation.patience + size.jobs / 20)
    wait_until(lambda: not unfinished_requests(installation), "requests do not end", installation.patience)
    installation.wait_done(batch, timeout=installation.patience + size.jobs / 20)
    broken = judge_streams(installation, clients.seen, may_end=may_end)
    grown = sum(one.pieces > 2 for one in clients.seen)  # the last two are the rest and the usage
    if not grown:
        broken.append("no answer grew")
    return Outcome(
        accepted=[batch, *single_requests(installation)],
        faults=size.faults,
        recoveries=recoveries,
        note=f"{len(clients.seen)} streams, {size.jobs // JOBS_PER_CLIENT} at once",
        broken=tuple(broken),
    )


@scenario(
    "streams: worker killed",
    quick=Size(jobs=80, faults=2),
    quick_on=("sqlite",),
    full=Size(jobs=1_000, faults=4),
)
def worker_killed(installation: Installation, size: Size) -> Outcome:
    """The successor makes the same tokens, and each stream goes on where it was."""
    recoveries = Recoveries(installation)
    worker = installation.start(fake_step_seconds=STEP_SECONDS)
    with _begun(installation, size) as (batch, clients, _):
        dice = random.Random(6)
        for _ in range(size.faults):
            _wait_a_moment(installation, clients, dice)
            recoveries.wait_busy(worker)
            recoveries.kill(worker)
            worker = installation.start(fake_step_seconds=STEP_SECONDS)
        recoveries.follow_all()
        return _end(installation, clients, batch, size, recoveries=recoveries.seconds)


@scenario(
    "streams: server killed",
    quick=Size(jobs=80, faults=1),
    quick_on=("postgres",),
    full=Size(jobs=1_000, faults=4),
)
def server_killed(installation: Installation, size: Size) -> Outcome:
    """Its jobs go on; who has named its request by a key asks again, and reads the same answer."""
    installation.start(fake_step_seconds=STEP_SECONDS)
    recoveries = []
    with _begun(installation, size, has_keys=True) as (batch, clients, first):
        server = first
        dice = random.Random(7)
        for _ in range(size.faults):
            _wait_a_moment(installation, clients, dice)
            server.kill()
            died_at, died_with = time.monotonic(), clients.whole
            server = installation.start_server(port=server.port)
            wait_until(lambda n=died_with: clients.whole > n, "nobody is answered", installation.patience)
            recoveries.append(time.monotonic() - died_at)
        outcome = _end(installation, clients, batch, size, recoveries=recoveries, may_end=lambda end: end == BROKEN)
        stored = Counter(prompt for accepted in outcome.accepted for prompt in accepted.prompts)
        broken = [f"{count} times stored: {prompt}" for prompt, count in stored.items() if count > 1]
        broken += [f"{one.key} ended with {one.end}" for one in clients.seen if one.key is not None and one.end != DONE]
        return dataclasses.replace(outcome, broken=(*outcome.broken, *broken))


@scenario(
    "streams: Redis killed, nothing kept",
    quick=Size(jobs=80, faults=1),
    quick_on=("sqlite",),
    full=Size(jobs=1_000, faults=4),
)
def broker_killed(installation: Installation, size: Size) -> Outcome:
    """Pieces on their way are lost with it, and ids that wait; each stream ends with what its answer has more."""
    installation.start(fake_step_seconds=STEP_SECONDS)
    recoveries = []
    with _begun(installation, size) as (batch, clients, _):
        dice = random.Random(8)
        for _ in range(size.faults):
            _wait_a_moment(installation, clients, dice)
            installation.redis.kill()
            died_at = time.monotonic()
            time.sleep(_outage(installation))
            installation.redis.start()
            clients.wait_ended(1, installation.patience)
            recoveries.append(time.monotonic() - died_at)
        return _end(installation, clients, batch, size, recoveries=recoveries)


@scenario(
    "streams: database locked",
    quick=Size(jobs=80, faults=1),
    quick_on=("postgres",),
    full=Size(jobs=1_000, faults=2),
)
def database_locked(installation: Installation, size: Size) -> Outcome:
    """Answers that end meanwhile cannot be stored, and come when they are."""
    installation.start(fake_step_seconds=STEP_SECONDS)
    seconds = 1.0 if installation.fork_server is not None else 30.0
    recoveries = []
    with _begun(installation, size) as (batch, clients, _):
        dice = random.Random(9)
        for _ in range(size.faults):
            _wait_a_moment(installation, clients, dice)
            with locked_database(installation):
                time.sleep(seconds)
            freed_at = time.monotonic()
            clients.wait_ended(1, installation.patience)
            recoveries.append(time.monotonic() - freed_at)
        return _end(installation, clients, batch, size, recoveries=recoveries, may_end=lambda end: end == UNAVAILABLE)


@scenario("streams: Postgres restarted", full=Size(jobs=1_000, faults=4), databases=("postgres",))
def database_restarted(installation: Installation, size: Size) -> Outcome:
    """Crashed and shut down in turn."""
    cluster = use_cluster(installation)
    installation.start(fake_step_seconds=STEP_SECONDS)
    recoveries = []
    with _begun(installation, size) as (batch, clients, _):
        dice = random.Random(10)
        for fault in range(size.faults):
            _wait_a_moment(installation, clients, dice)
            cluster.stop("fast" if fault % 2 else "immediate")
            time.sleep(_outage(installation))
            cluster.start()
            back_at = time.monotonic()
            clients.wait_ended(1, installation.patience)
            recoveries.append(time.monotonic() - back_at)
        return _end(installation, clients, batch, size, recoveries=recoveries, may_end=lambda end: end == UNAVAILABLE)


def _outage(installation: Installation) -> float:
    """Seconds."""
    return 0.5 if installation.fork_server is not None else 5.0
