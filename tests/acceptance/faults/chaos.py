"""Chaos: workers and submits under a steady load; on the way to both servers anything may happen."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from tests.acceptance.faults.oracle import Accepted, line_of
from tests.acceptance.faults.outages import use_cluster
from tests.acceptance.faults.plan import Plan
from tests.chaos_proxy import ChaosProxy, Fault, Weather

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.acceptance.faults.installation import Installation
    from tests.worker_box import WorkerProcess

LOOK_SECONDS = 0.1
# How much longer than asked for it goes on until each kind of fault has come: a busy machine sends few chunks.
COME_SECONDS = 120.0
# What its supervisor does not start again: nobody asked a worker to stop, and nothing is wrong with its settings.
NOT_STARTED_AGAIN = (0, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosConfig:
    """Attributes:

    broker: What happens to connections to Redis.
    database: What happens to connections to Postgres.
    batch: Jobs of a submission; another one begins while fewer than twice as many are unfinished.
    step_seconds: Of the fake engine.
    answer_seconds: In place of the product's limit on a statement; 0 keeps it.
    end_seconds: Within which all jobs must have ended once the weather is calm.
    """

    broker: Weather
    database: Weather
    batch: int
    step_seconds: float
    answer_seconds: float
    end_seconds: float


@dataclass
class _Submission:
    """One file, handed in until Helix says yes; under its key that makes one batch."""

    file: Path
    prompts: tuple[str, ...]
    process: WorkerProcess


@dataclass
class Chaos:
    """One run.

    Attributes:
        accepted: What Helix said yes to.
        exits: Exit codes of workers, which are started again as by a supervisor.
        refusals: Submissions that had to be handed in again.
        standstill: The longest time in which no job ended, in seconds.
    """

    installation: Installation
    config: ChaosConfig
    accepted: list[Accepted] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    refusals: int = 0
    standstill: float = 0.0

    def __post_init__(self) -> None:
        use_cluster(self.installation)
        url = make_url(self.installation.settings.database_url)
        assert url.port is not None
        self.broker = ChaosProxy(self.installation.redis.port, self.config.broker, seed=1)
        self.database = ChaosProxy(url.port, self.config.database, seed=2)
        for proxy in (self.broker, self.database):
            self.installation.stack.callback(proxy.close)
        self._where = {
            "redis_url": f"redis://127.0.0.1:{self.broker.port}/0",
            "database_url": url.set(port=self.database.port).render_as_string(hide_password=False),
        }
        self._plan = Plan(time_limits=self.installation.time_limits, answer_seconds=self.config.answer_seconds)
        self._workers: dict[str, WorkerProcess] = {}
        self._submission: _Submission | None = None
        self._unfinished, self._progress = 0, time.monotonic()

    def run(self, seconds: float) -> None:
        """Go on for so long, and until each kind of fault has come; then wait for the end in calm weather."""
        end = time.monotonic() + seconds
        latest = end + COME_SECONDS
        while (now := time.monotonic()) < end or not self._all_came():
            assert now < latest, f"some faults do not come: {self.counts()}"
            self._look(submit=True)
        for proxy in (self.broker, self.database):
            proxy.calm()
        end = time.monotonic() + self.config.end_seconds
        while self._submission is not None or self._unfinished:
            assert time.monotonic() < end, f"{self._unfinished} jobs do not end: {self._logs()}"
            self._look(submit=False)

    def counts(self) -> Mapping[str, int]:
        """Faults by server and kind."""
        return {
            f"{name} {fault}": proxy.faults[fault]
            for name, proxy in (("Redis", self.broker), ("Postgres", self.database))
            for fault in Fault
        }

    def broken(self) -> tuple[str, ...]:
        """What does not hold, in words."""
        found = [
            f"a worker ended with {code}, and nobody had asked" for code in self.exits if code in NOT_STARTED_AGAIN
        ]
        with self.installation.client() as client:
            batches = len(client.list(limit=10_000))
        if batches != len(self.accepted):
            found.append(f"{batches} batches of {len(self.accepted)} submissions")
        return tuple(found)

    def _all_came(self) -> bool:
        wanted = (self.config.broker, self.config.database)
        return all(
            proxy.faults[fault] or not chance
            for proxy, weather in zip((self.broker, self.database), wanted, strict=True)
            for fault, chance in (
                (Fault.LATENCY, weather.latency),
                (Fault.RESET, weather.reset),
                (Fault.CUT, weather.cut),
                (Fault.HALF_OPEN, weather.half_open),
            )
        )

    def _look(self, *, submit: bool) -> None:
        # Each on a host of its own: nobody can see that a predecessor is dead.
        for host in ("one", "other"):
            worker = self._workers.get(host)
            if worker is not None and (code := worker.process.poll()) is not None:
                self.exits.append(code)
                worker = None
            if worker is None:
                self._workers[host] = self.installation.start(
                    self._plan, ready=False, host=host, fake_step_seconds=str(self.config.step_seconds), **self._where
                )
        self._hand_in(submit=submit)
        unfinished = self.installation.unfinished(*self.accepted) if self.accepted else 0
        now = time.monotonic()
        if unfinished != self._unfinished or not unfinished:
            self._progress = now
        self.standstill = max(self.standstill, now - self._progress)
        self._unfinished = unfinished
        time.sleep(LOOK_SECONDS)

    def _hand_in(self, *, submit: bool) -> None:
        if self._submission is None:
            if submit and self._unfinished < 2 * self.config.batch:
                self._submission = self._begin(len(self.accepted))
            return
        code = self._submission.process.process.poll()
        if code == 0:
            with self.installation.client() as client:
                batch_id = client.list(1)[0].id
            self.accepted.append(Accepted(batch_id, self._submission.prompts))
            self._submission = None
        elif code is not None:
            self.refusals += 1
            assert "Traceback" not in self._submission.process.log, self._submission.process.log
            self._submission.process = self._submit(self._submission.file)

    def _begin(self, number: int) -> _Submission:
        prompts = tuple(f"line {n} of file {number}" for n in range(self.config.batch))
        file = self.installation.temporary / f"file-{number}.jsonl"
        file.write_text(
            "".join(f"{json.dumps(line_of(prompt, n))}\n" for n, prompt in enumerate(prompts)), encoding="utf-8"
        )
        return _Submission(file, prompts, self._submit(file))

    def _submit(self, file: Path) -> WorkerProcess:
        return self.installation.start_submit(self._plan, str(file), "--idempotency-key", file.stem, **self._where)

    def _logs(self) -> str:
        return "\n\n".join(worker.log[-3_000:] for worker in self._workers.values())
