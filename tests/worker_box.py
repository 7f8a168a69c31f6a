"""An installation of Helix for a test: home, database, broker, and real worker processes with the fake engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from helix_jobs import HelixClient
from helix_jobs.broker.publisher import CeleryPublisher, EmbeddedBroker, QueueNames, broker_url, read_queue_names
from helix_jobs.redis_url import MEMORY_URL
from helix_jobs.settings import Settings
from helix_jobs.storage.database import Database
from helix_jobs.storage.liveness import seems_alive
from helix_jobs.storage.migration import ensure_schema
from helix_jobs.storage.schema import jobs, results, workers
from helix_jobs.storage.workers import live_workers
from tests.migrated_sqlite import lay_database
from tests.redis_client import redis_client

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    # Arguments, environment, working directory, log; returns what answers to the names of a Popen.
    StartForked = Callable[[list[str], dict[str, str], Path, Path], Any]

ROOT = Path(__file__).parents[1]
PATIENCE = 45.0


def comes_true(condition: Callable[[], Any], timeout: float) -> bool:
    """Look again and again; return whether another thread or process makes it true within so many seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def wait_until(condition: Callable[[], Any], what: str | Callable[[], str], timeout: float = PATIENCE) -> None:
    """Wait for something another process does; fail with ``what``, asked for then, if it does not."""
    assert comes_true(condition, timeout), f"timed out: {what if isinstance(what, str) else what()}"


def prompts(count: int, words: int = 6) -> list[str]:
    """Prompts that all differ."""
    return [" ".join(f"w{i}-{n}" for n in range(words)) for i in range(count)]


def worker_is_live(settings: Settings) -> bool:
    """Whether a worker seems to serve this database, judged without waiting for a heartbeat."""
    database = Database(settings.database_url)
    ensure_schema(database)
    with database.read() as c:
        is_live = any(seems_alive(worker, database.time_limits.lease) for worker in live_workers(c))
    database.dispose()
    return is_live


def flush(url: str) -> None:
    """FLUSHALL."""
    with redis_client(url) as client:
        client.flushall()


@dataclass
class WorkerProcess:
    """A real worker: ``python worker.py``, or its like from a fork server."""

    process: Any  # a Popen, or what answers to the same names
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")

    def wait_ready(self) -> None:
        wait_until(
            lambda: "Ready." in self.log or self.process.poll() is not None, lambda: f"worker is not ready: {self.log}"
        )
        assert self.process.poll() is None, self.log

    def send(self, signal_number: int) -> None:
        self.process.send_signal(signal_number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit code; one that does not end says where each of its threads is."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGABRT)  # see PYTHONFAULTHANDLER
            self.process.wait(timeout)
            raise AssertionError(f"the worker did not end within {timeout} s:\n{self.log}") from None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Box:
    """One Helix installation: a home, a database, a broker, and the workers and other processes a test starts.

    Attributes:
        settings: Of everything in it.
        temporary: A directory of its own.
        started: Its workers.
        start_forked: Forks a worker from a process that has imported everything, which saves most of a start. Without
            it each worker is a fresh ``python worker.py``.
    """

    settings: Settings
    temporary: Path
    started: list[WorkerProcess] = field(default_factory=list)
    start_forked: StartForked | None = field(kw_only=True, default=None)
    _spawned: list[subprocess.Popen[str]] = field(default_factory=list)
    _database: Database | None = field(init=False, default=None)

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HELIX_", "CELERY_"))}
        there = {"TMPDIR": str(self.temporary), "COLUMNS": "200", "PYTHONFAULTHANDLER": "1"}
        return {**clean, **self.settings.to_environment(), **there}

    def client(self) -> HelixClient:
        return HelixClient(self.settings)

    def database(self) -> Database:
        return Database(self.settings.database_url)

    def start_worker(
        self, *arguments: str, ready: bool = True, fresh: bool = False, **environment: str
    ) -> WorkerProcess:
        """Start a worker.

        Args:
            arguments: Of ``worker.py``.
            ready: Wait until it takes jobs.
            fresh: Start an interpreter, where what it inherits or imports is what the test is about.
            environment: HELIX_* variables without the prefix, in small letters.
        """
        extra = {f"HELIX_{name.upper()}": value for name, value in environment.items()}
        log_path = self.new_log()
        if self.start_forked is not None and not fresh:
            forked = self.start_forked([*arguments], self.environment | extra, self.temporary, log_path)
            return self.adopt(WorkerProcess(forked, log_path), ready=ready)
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", str(ROOT / "worker.py"), *arguments],
                cwd=self.temporary,
                env=self.environment | extra,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.adopt(WorkerProcess(process, log_path), ready=ready)

    def new_log(self) -> Path:
        """An empty file for the next worker's output."""
        log = self.temporary / f"worker-{len(self.started)}.log"
        log.touch()
        return log

    def adopt(self, worker: WorkerProcess, *, ready: bool) -> WorkerProcess:
        """Have a worker ended with this box; wait until it is ready if so wished."""
        self.started.append(worker)
        if ready:
            worker.wait_ready()
        return worker

    def spawn(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command in this box's environment; whatever a test that fails leaves of it ends with this box.

        Else a later test is told of a process that runs and of pipes that were not closed, when they are collected.
        """
        environment = self.environment | options.pop("env", {})
        process = subprocess.Popen(command, env=environment, text=True, **options)
        self._spawned.append(process)
        return process

    def run(self, *command: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command in this box's environment, with ``env`` in addition."""
        environment = {**self.environment, **(env or {})}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    def submit(self, *prompts: str, cache: bool | None = False, at_broker: bool = True, **fields: Any) -> str:
        """Submit lines, equal ones among them, each of which is to be computed unless ``cache`` says otherwise.

        A client that is not at the broker leaves it to a worker to publish them.
        """
        settings = self.settings if at_broker else replace(self.settings, redis_url=MEMORY_URL)
        with HelixClient(settings) as client:
            return client.submit([{"prompt": prompt, **fields} for prompt in prompts], cache=cache).batch_id

    def states(self, batch_id: str) -> dict[str, int]:
        """Jobs per state, counted in the table itself."""
        with self.read() as c:
            query = select(jobs.c.state, func.count()).where(jobs.c.batch_id == batch_id).group_by(jobs.c.state)
            return {str(state): int(count) for state, count in c.execute(query)}

    def rows(self, batch_id: str) -> list[Any]:
        """The batch's jobs in the order of their lines."""
        with self.read() as c:
            return list(c.execute(select(jobs).where(jobs.c.batch_id == batch_id).order_by(jobs.c.line)))

    def wait_states(self, batch_id: str, timeout: float = PATIENCE, **expected: int) -> None:
        wait_until(
            lambda: self.states(batch_id) == expected, lambda: f"{expected}, is {self.states(batch_id)}", timeout
        )

    def result_count(self, batch_id: str) -> int:
        with self.read() as c:
            query = select(func.count()).select_from(results.join(jobs, results.c.job_id == jobs.c.id))
            return int(c.execute(query.where(jobs.c.batch_id == batch_id)).scalar_one())

    def worker_rows(self) -> list[Any]:
        with self.read() as c:
            return list(c.execute(select(workers).order_by(workers.c.started_at)))

    @property
    def names(self) -> QueueNames:
        ensure_schema(self.own_database)  # whoever comes first makes the database
        return read_queue_names(self.own_database)

    def publisher(self) -> CeleryPublisher:
        """A connection to this box's queue."""
        return CeleryPublisher(broker_url(self.settings), self.names)

    @property
    def own_database(self) -> Database:
        """The connections with which a test looks into this box's database; the first use opens them."""
        if self._database is None:
            self._database = self.database()
        return self._database

    def read(self) -> Any:
        """A transaction that reads this box's database."""
        return self.own_database.read()

    def forget_database(self) -> None:
        """Close a test's own connections; the next look opens whatever database is there by then."""
        if self._database is not None:
            self._database.dispose()
            self._database = None

    def close(self) -> None:
        for process in self._spawned:
            with process:
                process.kill()
        for worker in self.started:
            if worker.process.poll() is None:
                worker.send(signal.SIGKILL)
                worker.process.wait()
        if self.settings.redis_url is None:
            EmbeddedBroker(self.settings.home).stop()
        self.forget_database()


def make_box(
    home: Path,
    temporary: Path,
    *,
    redis_url: str | None,
    database_url: str | None,
    start_forked: StartForked | None = None,
) -> Box:
    """A box whose worker has the fake engine and four slots; without a URL its database is SQLite's, and migrated."""
    file = home / "helix.db"
    if database_url is None:
        lay_database(file)
    settings = Settings(
        home=home,
        redis_url=redis_url,
        database_url=database_url or f"sqlite:///{file}",
        max_batch_size=4,
        engine="fake",
        # Boxes must not see each other's.
        lock_dir=temporary / "locks",
    )
    return Box(settings, temporary, start_forked=start_forked)
