"""Installation: a temporary Helix for the bench, which leaves the user's installation alone."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from redis import Redis
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from helix_jobs.broker.publisher import CeleryPublisher, EmbeddedBroker, read_queue_names
from helix_jobs.client.client import HelixClient
from helix_jobs.database_url import normalize_database_url, sqlite_url
from helix_jobs.errors import ConfigurationError, DatabaseUnreachableError, HelixError
from helix_jobs.python_child import import_path, python_command
from helix_jobs.settings import Settings
from helix_jobs.storage.database import Database
from helix_jobs.storage.faults import unreachable_reason
from helix_jobs.storage.migration import upgrade

if TYPE_CHECKING:
    from types import TracebackType

    from helix_jobs.bench.queue.plan import QueuePlan

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 60.0
_READY: Final = "Ready."


class Installation:
    """A home, a database, a broker and workers with the fake engine; a context manager that removes them all.

    Attributes:
        settings: The settings of all its processes.
        home: The temporary directory.
        database: The open, migrated database.
        publisher: A publisher connected to the broker.
    """

    def __init__(self, plan: QueuePlan) -> None:
        self._plan = plan
        self._stack = ExitStack()
        self._workers: list[tuple[subprocess.Popen[bytes], Path]] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # The path is short, because a socket's path has a length limit.
            self.home = Path(tempfile.mkdtemp(prefix="hx-bench-"))
            stack.callback(shutil.rmtree, self.home, ignore_errors=True)
            redis_url = self._start_broker(stack)
            self.settings = Settings(
                home=self.home,
                redis_url=redis_url,
                database_url=self._database_url(stack),
                max_batch_size=self._plan.batch_size,
                engine="fake",
            )
            self.database = Database(self.settings.database_url)
            stack.callback(self.database.dispose)
            upgrade(self.database)
            self.publisher = CeleryPublisher(redis_url, read_queue_names(self.database))
            stack.callback(self.publisher.close)
            stack.callback(self._kill_workers)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def server_info(self) -> dict[str, Any]:
        """The broker's INFO."""
        info: dict[str, Any] = self._redis.info()
        return info

    def client(self) -> HelixClient:
        """A client of this installation."""
        return HelixClient(self.settings)

    def environment(self) -> dict[str, str]:
        """The environment of its processes, without the user's settings."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HELIX_", "CELERY_"))}
        # The fake device replaces the user's.
        return {
            **clean,
            **import_path(),
            **self.settings.to_environment(),
            "TMPDIR": str(self.home),
            "HELIX_LOCK_DIR": str(self.home / "locks"),
            "HELIX_FAKE_STEP_SECONDS": str(self._plan.step_ms / 1000),
        }

    def spawn(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start ``python -m COMMAND`` with its output in ``log``."""
        with log.open("wb") as output:
            return subprocess.Popen(  # noqa: S603  (our own modules, no shell)
                python_command("-m", *command),
                cwd=self.home,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_workers(self) -> list[int]:
        """Start the planned workers, wait until they are ready, and return their process ids.

        Raises:
            HelixError: A worker did not become ready.
        """
        for number in range(self._plan.workers):
            log = self.home / f"worker-{number}.log"
            self._workers.append((self.spawn("helix_jobs", "worker", "--allow-shared-device", log=log), log))
        deadline = time.monotonic() + _START_SECONDS
        for process, log in self._workers:
            while _READY not in log.read_text(encoding="utf-8", errors="replace"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise HelixError(f"a worker did not start: {tail(log)}")
                time.sleep(0.05)
        return [process.pid for process, _ in self._workers]

    def check_workers(self) -> None:
        """Make sure the workers still run.

        Raises:
            HelixError: A worker has ended.
        """
        for process, log in self._workers:
            if process.poll() is not None:
                raise HelixError(f"a worker ended with exit code {process.returncode}: {tail(log)}")

    def stop_workers(self) -> None:
        """Stop the workers cleanly.

        Raises:
            HelixError: A worker does not stop.
        """
        for process, _ in self._workers:
            process.terminate()
        for process, log in self._workers:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                raise HelixError(f"a worker does not stop: {tail(log)}") from None
        self._workers.clear()

    def _kill_workers(self) -> None:
        for process, _ in self._workers:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _start_broker(self, stack: ExitStack) -> str:
        broker = EmbeddedBroker(self.home)
        broker.start()
        stack.callback(broker.stop)
        self._redis = Redis(unix_socket_path=str(broker.socket_path))
        stack.callback(self._redis.close)
        return broker.url

    def _database_url(self, stack: ExitStack) -> str:
        """SQLite under home, or a new database on the given Postgres server."""
        if self._plan.database_url is None:
            return sqlite_url(self.home / "helix.db")
        url = normalize_database_url(self._plan.database_url)
        if url.startswith("sqlite"):
            raise ConfigurationError("give a Postgres server; without a URL the bench makes an SQLite database")
        name = f"helix_bench_{secrets.token_hex(6)}"
        server = create_engine(url, isolation_level="AUTOCOMMIT")
        stack.callback(server.dispose)

        def run(statement: str) -> None:
            try:
                with server.connect() as connection:
                    connection.execute(text(statement))
            except DBAPIError as error:
                shown = make_url(url).render_as_string(hide_password=True)
                reason = unreachable_reason(error) or f"refused: {type(error.orig).__name__}"
                raise DatabaseUnreachableError(f"database {shown} {reason}") from error

        run(f"CREATE DATABASE {name}")
        stack.callback(run, f"DROP DATABASE {name} WITH (FORCE)")
        return make_url(url).set(database=name).render_as_string(hide_password=False)


def tail(log: Path, lines: int = 5) -> str:
    """The last lines of a process's log."""
    return " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) or "(no output)"
