"""The soak: two workers under load for half an hour, something broken every 20 seconds.

python -m pytest -m soak -s tests/acceptance/faults [--soak-minutes 30]

One worker is killed and stopped again and again; the other lives through it all, as does a server whose clients read
streamed answers. Both are watched for what they gather: memory, threads, file descriptors, connections. At the end the
oracle judges every job, and each stream is compared with the stored answer.
"""

from __future__ import annotations

import itertools
import random
import signal
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
import pytest
from sqlalchemy import text

from tests.acceptance.faults.oracle import Accepted, judge
from tests.acceptance.faults.stream_clients import (
    StreamClients,
    judge_streams,
    single_requests,
    unfinished_requests,
)
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.acceptance.faults.installation import Installation, ServerProcess
    from tests.acceptance.faults.stream_clients import Seen
    from tests.worker_box import WorkerProcess

FAULT_SECONDS = 20.0
LOOK_SECONDS = 5.0
BATCH = 400
# A message lost on a busy broker is found by two audits.
STREAM_PATIENCE = 600.0
# Below this many unfinished jobs another batch is submitted.
BACKLOG = 800
STEP_SECONDS = "0.05"
# They take a part of the slots: bulk work goes on beside them.
CLIENTS, CLIENT_PAUSE = 6, 3.0
# How a stream may end beside whole: its database was cut off.
UNAVAILABLE = "unavailable"
SHORT_STOP, LONG_STOP = 8.0, 40.0
# What counts as flat: noise of the allocator, not a leak, which half an hour of this load would make far larger.
MEMORY_GROWTH = 1.10
SPARE = {"fds": 8, "threads": 4, "server_fds": 8, "server_threads": 8, "redis_clients": 6, "database_connections": 6}
MEMORY = ("rss", "server_rss")
# Faults open and close connections; until so much of the time the worker still warms up.
WARM_UP_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Look:
    """What the surviving worker and the server hold at one moment; connections are those of the whole installation."""

    at: float
    rss: int
    fds: int
    threads: int
    server_rss: int
    server_fds: int
    server_threads: int
    redis_clients: int
    database_connections: int


@dataclass
class Soak:
    """One run."""

    installation: Installation
    dice: random.Random
    batches: list[Accepted] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    retried: set[str] = field(default_factory=set)
    hosts: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    survivor: WorkerProcess = field(init=False)
    victim: WorkerProcess = field(init=False)
    server: ServerProcess = field(init=False)
    streams: list[Seen] = field(default_factory=list)

    def run(self, minutes: float) -> None:
        self.survivor = self._start()
        self.victim = self._start()
        self.server = self.installation.start_server()
        with StreamClients(self.server.address) as clients:
            clients.begin(CLIENTS, pause=CLIENT_PAUSE)
            self._break_for(minutes)
            clients.finish(STREAM_PATIENCE)
        self.streams = clients.seen
        wait_until(lambda: not unfinished_requests(self.installation), "requests do not end")
        self._finish()

    def _break_for(self, minutes: float) -> None:
        breaks = self._breaks()
        end = time.monotonic() + 60 * minutes
        next_fault = time.monotonic() + FAULT_SECONDS
        while time.monotonic() < end:
            self._top_up()
            if time.monotonic() >= next_fault:
                name, action = next(breaks)
                action()
                self.faults[name] += 1
                next_fault = time.monotonic() + FAULT_SECONDS
            self._look()
            time.sleep(LOOK_SECONDS)

    def _finish(self) -> None:
        for batch in self.batches:
            # One whose cancel was the last thing that happened.
            if batch.batch_id in self.retried:
                with self.installation.client() as client:
                    client.retry(batch.batch_id)
        self.installation.wait_done(*self.batches, timeout=300)
        self._look()

    def _breaks(self) -> itertools.cycle[tuple[str, Callable[[], None]]]:
        actions: list[tuple[str, Callable[[], None]]] = [
            ("SIGKILL", self._kill),
            ("cancel and retry", self._cancel_and_retry),
            ("pause and resume", self._pause_and_resume),
            ("SIGSTOP and SIGCONT", lambda: self._stop(SHORT_STOP)),
            ("FLUSHALL", self._flush),
            ("SIGTERM", self._terminate),
            ("Redis restarted", self._restart_redis),
            ("database connections cut", self._cut_connections),
            ("SIGSTOP past the lease", lambda: self._stop(LONG_STOP)),
        ]
        if self.installation.database().sqlite_file is not None:
            actions = [action for action in actions if action[0] != "database connections cut"]
        return itertools.cycle(actions)

    def _start(self) -> WorkerProcess:
        # Each on a host of its own: nobody can see that a predecessor is dead.
        return self.installation.start(host=f"host-{next(self.hosts)}", fake_step_seconds=STEP_SECONDS)

    def _top_up(self) -> None:
        if self.installation.unfinished(*self.batches[-8:]) < BACKLOG:
            self.batches.append(self.installation.accept(BATCH, words=self.dice.randint(4, 12)))

    def _kill(self) -> None:
        self.victim.kill()
        self.victim = self._start()

    def _terminate(self) -> None:
        self.victim.send(signal.SIGTERM)
        assert self.victim.wait() == 0, self.victim.log
        self.victim = self._start()

    def _stop(self, seconds: float) -> None:
        self.survivor.send(signal.SIGSTOP)
        time.sleep(seconds)
        self.survivor.send(signal.SIGCONT)

    def _flush(self) -> None:
        with self.installation.redis.client() as client:
            client.flushall()

    def _restart_redis(self) -> None:
        self.installation.redis.kill()
        time.sleep(3.0)
        self.installation.redis.start()

    def _cut_connections(self) -> None:
        """Every connection of the installation's database but the one that asks."""
        with self.installation.own_database.write() as c:
            c.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )

    def _cancel_and_retry(self) -> None:
        batch = self.dice.choice(self.batches[-3:])
        with self.installation.client() as client:
            client.cancel(batch.batch_id)
            self.retried.add(batch.batch_id)
            time.sleep(self.dice.uniform(0.0, 2.0))
            client.retry(batch.batch_id)

    def _pause_and_resume(self) -> None:
        batch = self.dice.choice(self.batches[-3:])
        with self.installation.client() as client:
            client.pause(batch.batch_id)
            time.sleep(self.dice.uniform(0.0, 5.0))
            client.resume(batch.batch_id)

    def _look(self) -> None:
        assert self.survivor.process.poll() is None, f"the survivor has ended: {self.survivor.log[-3000:]}"
        assert self.server.process.poll() is None, f"the server has ended: {self.server.log[-3000:]}"
        process, server = psutil.Process(self.survivor.process.pid), psutil.Process(self.server.process.pid)
        with self.installation.redis.client() as client:
            clients = int(client.info("clients")["connected_clients"])
        connections = 0
        if self.installation.own_database.sqlite_file is None:
            with self.installation.own_database.read() as c:
                query = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
                connections = int(c.execute(query).scalar_one())
        self.looks.append(
            Look(
                at=time.monotonic(),
                rss=process.memory_info().rss,
                fds=process.num_fds(),
                threads=process.num_threads(),
                server_rss=server.memory_info().rss,
                server_fds=server.num_fds(),
                server_threads=server.num_threads(),
                redis_clients=clients,
                database_connections=connections,
            )
        )

    def early_and_late(self, name: str) -> tuple[float, float]:
        """Medians over the second and the last fifth of the time."""
        values = [float(getattr(look, name)) for look in self.looks]
        fifth = max(1, int(len(values) * WARM_UP_SHARE))
        return statistics.median(values[fifth : 2 * fifth]), statistics.median(values[-fifth:])

    def megabytes_an_hour(self) -> float:
        """Slope of the resident memory after the warm-up, by least squares."""
        looks = self.looks[int(len(self.looks) * WARM_UP_SHARE) :]
        line = statistics.linear_regression([look.at for look in looks], [look.rss for look in looks])
        return float(line.slope) * 3600 / 1e6

    def leaks(self) -> Sequence[str]:
        """What has grown."""
        grown = []
        for name in MEMORY:
            early, late = self.early_and_late(name)
            if late > early * MEMORY_GROWTH:
                grown.append(f"{name}: {early / 1e6:.0f} MB, then {late / 1e6:.0f} MB")
        for name, spare in SPARE.items():
            early, late = self.early_and_late(name)
            if late > early + spare:
                grown.append(f"{name}: {early:.0f}, then {late:.0f}")
        return grown


@pytest.mark.soak
@pytest.mark.redis
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_soak(database: str, make: Callable[..., Installation], pytestconfig: pytest.Config) -> None:
    minutes = float(pytestconfig.getoption("--soak-minutes", default=30.0))
    installation = make(database, quick=False)
    soak = Soak(installation, random.Random(11))
    soak.run(minutes)
    verdict = judge(installation, [*soak.batches, *single_requests(installation)])
    print(report(soak, verdict.jobs, verdict.lost, verdict.doubled, verdict.executions), flush=True)  # noqa: T201  (-s shows it)
    assert verdict.broken == ()
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert judge_streams(installation, soak.streams, may_end=lambda end: end == UNAVAILABLE) == []
    assert soak.leaks() == []
    for worker in (soak.server, soak.survivor, soak.victim):
        worker.send(signal.SIGTERM)
    for worker in (soak.survivor, soak.victim):
        assert worker.wait() == 0, worker.log[-3000:]
    wait_until(lambda: not installation.worker_rows() or all(row.stopped_at for row in installation.worker_rows()), "")


def report(soak: Soak, jobs: int, lost: int, doubled: int, executions: int) -> str:
    """The figures, one a line."""
    minutes = (soak.looks[-1].at - soak.looks[0].at) / 60
    lines = [
        f"{minutes:.0f} minutes, {jobs:,} jobs: {lost} lost, {doubled} duplicated, {executions} executions beyond one",
        f"{len(soak.streams):,} streams: {dict(Counter(one.end for one in soak.streams))}",
        f"{soak.faults.total()} faults: " + ", ".join(f"{count} x {name}" for name, count in soak.faults.items()),
        f"memory slope {soak.megabytes_an_hour():+.1f} MB/h",
    ]
    for name in (*MEMORY, *SPARE):
        early, late = soak.early_and_late(name)
        scale, unit = (1e6, " MB") if name in MEMORY else (1, "")
        lines.append(f"{name}: {early / scale:.0f}{unit} early, {late / scale:.0f}{unit} late")
    return "\n" + "\n".join(lines)
