"""Redis goes away, comes back empty, or falls silent. The worker resumes within 60 s of its return, without a restart.

Clients keep what they submit although Redis is away: the worker publishes it later.
"""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING

from sqlalchemy import select

from helix_jobs.broker.messages import job_id_of_message
from helix_jobs.storage.schema import jobs
from tests.acceptance.faults.progress import ended, wait_ended, wait_resumed
from tests.acceptance.faults.scenario import Outcome, Size, scenario
from tests.tcp_proxy import TcpProxy
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from tests.acceptance.faults.installation import Installation
    from tests.acceptance.faults.oracle import Accepted
    from tests.worker_box import WorkerProcess

AWAY_SECONDS = 60.0
OUTAGE_SECONDS = 3.0
# Until what had been delivered before is used up.
USED_UP_SECONDS = 5.0
# What a worker of these scenarios ends at the least, each third job asking for three answers.
LEAST_JOBS_PER_SECOND = 4


def _begin(installation: Installation, size: Size, **where: str) -> tuple[Accepted, WorkerProcess]:
    """Jobs that last longer than the faults, and a worker in the middle of them."""
    step_seconds = 0.05 if installation.fork_server is not None else 0.25
    batch = installation.accept(size.jobs)
    worker = installation.start(fake_step_seconds=str(step_seconds), **where)
    wait_ended(installation, batch, 4)
    return batch, worker


def _end(installation: Installation, batch: Accepted, faults: int, recoveries: list[float], note: str = "") -> Outcome:
    assert ended(installation, batch) < len(batch.prompts), "the jobs were done before the last fault"
    installation.wait_done(batch, timeout=installation.patience + len(batch.prompts) / LEAST_JOBS_PER_SECOND)
    return Outcome(accepted=[batch], faults=faults, recoveries=recoveries, note=note)


@scenario(
    "Redis killed, nothing kept", quick=Size(jobs=60, faults=1), quick_on=("postgres",), full=Size(jobs=600, faults=2)
)
def killed(installation: Installation, size: Size) -> Outcome:
    """What waits and what is delivered is gone with it."""
    batch, worker = _begin(installation, size)
    recoveries = []
    for _ in range(size.faults):
        installation.redis.kill()
        time.sleep(0.5 if installation.fork_server is not None else USED_UP_SECONDS)
        installation.redis.start()
        recoveries.append(wait_resumed(installation, worker))
    return _end(installation, batch, size.faults, recoveries)


@scenario("FLUSHALL", full=Size(jobs=600, faults=2))
def flushed(installation: Installation, size: Size) -> Outcome:
    """Everything in Redis is deleted while the worker is connected."""
    batch, worker = _begin(installation, size)
    recoveries = []
    for _ in range(size.faults):
        with installation.redis.client() as client:
            client.flushall()
        time.sleep(USED_UP_SECONDS)
        recoveries.append(wait_resumed(installation, worker))
    return _end(installation, batch, size.faults, recoveries)


@scenario("Redis away for 60 s", full=Size(jobs=600, faults=1))
def away(installation: Installation, size: Size) -> Outcome:
    """What is delivered is finished meanwhile, and nothing is acknowledged twice."""
    batch, worker = _begin(installation, size)
    installation.redis.kill()
    time.sleep(AWAY_SECONDS)
    finished = ended(installation, batch)
    installation.redis.start()
    recovery = wait_resumed(installation, worker)
    return _end(installation, batch, 1, [recovery], note=f"{finished} finished by the end of it")


@scenario("20 short outages of Redis", full=Size(jobs=600, faults=20))
def outages(installation: Installation, size: Size) -> Outcome:
    """Killed and started again and again, before the worker has found its way back or just after."""
    dice = random.Random(4)
    batch, worker = _begin(installation, size)
    for _ in range(size.faults):
        installation.redis.kill()
        time.sleep(dice.uniform(0.0, OUTAGE_SECONDS))
        installation.redis.start()
        time.sleep(dice.uniform(0.0, OUTAGE_SECONDS))
    recovery = wait_resumed(installation, worker)
    return _end(installation, batch, size.faults, [recovery])


@scenario("half-open connections to Redis", full=Size(jobs=600, faults=2))
def half_open(installation: Installation, size: Size) -> Outcome:
    """Every connection of the worker goes dead, and neither end is told."""
    proxy = TcpProxy(installation.redis.port)
    installation.stack.callback(proxy.close)
    batch, worker = _begin(installation, size, redis_url=proxy.url)
    recoveries, connections = [], 0
    for _ in range(size.faults):
        connections += proxy.go_dead()
        time.sleep(USED_UP_SECONDS)
        recoveries.append(wait_resumed(installation, worker))
    return _end(installation, batch, size.faults, recoveries, note=f"{connections} connections")


@scenario(
    "a message lost on a busy broker",
    quick=Size(jobs=150, faults=1),
    quick_on=("sqlite",),
    full=Size(jobs=2_000, faults=1),
)
def lost_one(installation: Installation, size: Size) -> Outcome:
    """One id vanishes from a queue that never runs dry: an empty queue is not what shows it."""
    batch, worker = _begin(installation, size)
    job_id = _take_newest(installation)
    began = time.monotonic()
    batches, waiting = [batch], [size.jobs]

    def has_ended() -> bool:
        """Look, and keep the queue full if it has not."""
        if job_id in _ended_jobs(installation):
            return True
        waiting.append(_waiting(installation))
        if waiting[-1] < size.jobs // 2:
            batches.append(installation.accept(size.jobs // 2))
        return False

    # Two looks of the audit, and what is before the job in the queue then.
    patience = 2 * installation.time_limits.audit + size.jobs / LEAST_JOBS_PER_SECOND + installation.patience
    wait_until(has_ended, lambda: f"job {job_id} does not run: {worker.log}", patience)
    recovery = time.monotonic() - began
    broken = () if min(waiting) else ("the queue ran dry",)
    if "were lost on the way" not in worker.log:
        broken = (*broken, "the loss was not noticed")
    stored = sum(len(one.prompts) for one in batches)
    installation.wait_done(*batches, timeout=installation.patience + stored / LEAST_JOBS_PER_SECOND)
    return Outcome(accepted=batches, faults=1, recoveries=[recovery], note="never empty", broken=broken)


def _take_newest(installation: Installation) -> int:
    """Take the message away that would be delivered last; the id of its job."""
    with installation.redis.client() as client:
        raw = next(raw for key in installation.names.lists[::-1] if (raw := client.lpop(key)) is not None)
    job_id = job_id_of_message(json.loads(raw), installation.names.queue)
    assert job_id is not None
    return job_id


def _waiting(installation: Installation) -> int:
    with installation.redis.client() as client:
        return sum(int(client.llen(key)) for key in installation.names.lists)


def _ended_jobs(installation: Installation) -> set[int]:
    with installation.read() as c:
        return set(c.execute(select(jobs.c.id).where(jobs.c.finished_at.is_not(None))).scalars())
