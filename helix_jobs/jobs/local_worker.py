"""LocalWorker: the worker behind ``submit --local``, started if none runs and stopped afterwards.

It is a child process that is controlled through its pipes, which works the same on every system: it reports on its
standard output, one JSON object a line, and stops when its standard input ends, so it also stops when its parent is
killed. Where the broker lives in memory (Windows without a Redis) it is a thread of this process instead.
"""

from __future__ import annotations

import _thread
import json
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Final, Self

from helix_jobs import errors
from helix_jobs.errors import HelixError
from helix_jobs.jobs.process import process_exists
from helix_jobs.private_files import open_private
from helix_jobs.python_child import import_path, python_command
from helix_jobs.redis_url import MEMORY_URL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from helix_jobs.jobs.store import Worker
    from helix_jobs.settings import Settings

logger = logging.getLogger(__name__)

STOP_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.5
RECENT_SECONDS: Final = 30.0

Event = dict[str, Any]


class LocalWorker:
    """Makes sure a worker runs while the ``with`` block does.

    Entering it returns when the worker is ready. A worker that runs already is used and left alone.

    Args:
        settings: The effective settings.
        on_progress: Told in one line what is being done until the worker is ready; called on the entering thread.

    Attributes:
        started: Whether a worker was started here.
        log_path: Its log; None where it shares this process.
    """

    def __init__(self, settings: Settings, *, on_progress: Callable[[str], None] | None = None) -> None:
        self._settings = settings
        self._on_progress = on_progress or (lambda _: None)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._worker: _Child | _Thread | None = None
        self.started = False
        self.log_path: Path | None = None

    def __enter__(self) -> Self:
        if worker_is_live(self._settings):
            return self
        in_memory = self._settings.redis_url == MEMORY_URL
        if in_memory or (sys.platform == "win32" and self._settings.redis_url is None):
            self._worker = _Thread(replace(self._settings, redis_url=MEMORY_URL), self._events.put)
        else:
            self.log_path = self._settings.make_home() / "worker.log"
            self._worker = _Child(self._settings, self.log_path, self._events.put)
        self.started = True
        try:
            self._wait_ready()
        except BaseException:
            self._worker.stop(now=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._worker is not None:
            # After an interrupt nobody wants to wait for the jobs in hand: they go back to the queue.
            self._worker.stop(now=error is not None)

    def check(self) -> None:
        """Make sure the worker is still there; for whoever waits for it.

        Raises:
            HelixError: It has ended; the message says where its log is.
        """
        with suppress(queue.Empty):
            while True:
                self._handle(self._events.get_nowait())

    def _wait_ready(self) -> None:
        while True:
            # On Windows a wait without an end cannot be interrupted by Ctrl-C.
            with suppress(queue.Empty):
                if self._handle(self._events.get(timeout=POLL_SECONDS)) == "ready":
                    return

    def _handle(self, event: Event) -> str:
        name = str(event.get("event"))
        if name == "progress":
            self._on_progress(str(event.get("message")))
        elif name == "error":
            raise _error(str(event.get("kind")), str(event.get("message")))
        elif name == "ended":
            where = "" if self.log_path is None else f"; see {self.log_path}"
            raise HelixError(f"the local worker ended by itself (exit code {event.get('code')}){where}")
        return name


def worker_is_live(settings: Settings) -> bool:
    """Whether some worker serves this database, as far as can be told at once.

    Raises:
        DatabaseUnreachableError: The database does not answer.
    """
    from helix_jobs.jobs import store
    from helix_jobs.jobs.database import Database, ensure_schema

    database = Database(settings.database_url)
    try:
        settings.make_home()
        ensure_schema(database)
        with database.read() as c:
            workers = store.live_workers(c)
    finally:
        database.dispose()
    return any(_seems_live(worker, socket.gethostname(), datetime.now(UTC)) for worker in workers)


def _seems_live(worker: Worker, hostname: str, now: datetime) -> bool:
    """A killed worker's row stays for half a minute; on this host its process tells.

    For other hosts their clock is taken at its word. If it is wrong, one worker too many is started, which is safe.
    """
    if worker.hostname == hostname:
        return process_exists(worker.pid)
    return abs((now - worker.heartbeat_at).total_seconds()) < RECENT_SECONDS


class _Child:
    """A worker process."""

    def __init__(self, settings: Settings, log_path: Path, emit: Callable[[Event], None]) -> None:
        self._patience = settings.shutdown_grace + STOP_SECONDS
        with open_private(log_path, "ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  (our own module, no shell)
                python_command("-m", "helix_jobs.jobs.local_worker"),
                env={**os.environ, **import_path(), **settings.to_environment()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                **_detached(),
            )
        self._reader = threading.Thread(target=self._read, args=(emit,), name="helix-local-worker", daemon=True)
        self._reader.start()

    def stop(self, *, now: bool) -> None:
        """Close the child's input; kill it if it does not go."""
        stdin = self._process.stdin
        with suppress(OSError):
            if stdin is not None:
                if now:
                    stdin.write(b"now\n")
                    stdin.flush()
                stdin.close()
        try:
            self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            logger.warning("the local worker does not stop and is killed; its jobs are handed back later")
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def _read(self, emit: Callable[[Event], None]) -> None:
        if self._process.stdout is not None:
            with self._process.stdout as lines:
                for line in lines:
                    event = _parse(line)
                    if event is not None:
                        emit(event)
        emit({"event": "ended", "code": self._process.wait()})


class _Thread:
    """A worker on a thread of this process, for a broker that lives in its memory."""

    def __init__(self, settings: Settings, emit: Callable[[Event], None]) -> None:
        from helix_jobs.jobs.worker import StopButton

        self._button = StopButton()
        self._thread = threading.Thread(target=self._run, args=(settings, emit), name="helix-local-worker", daemon=True)
        self._thread.start()

    def stop(self, *, now: bool) -> None:
        """Press the button and wait."""
        from helix_jobs.jobs.worker import StopRequest

        for _ in range(2 if now else 1):
            self._button.press(StopRequest.INTERRUPT)
        self._thread.join()

    def _run(self, settings: Settings, emit: Callable[[Event], None]) -> None:
        code = _run_reporting(settings, self._button, emit, handle_signals=False)
        emit({"event": "ended", "code": code})


def _run_reporting(settings: Settings, button: Any, emit: Callable[[Event], None], *, handle_signals: bool) -> int:  # noqa: ANN401
    """Run a worker; report progress, readiness and errors as events."""
    from helix_jobs.jobs.worker import run_worker

    try:
        return run_worker(
            settings,
            on_progress=lambda line: emit({"event": "progress", "message": line}),
            on_ready=lambda _: emit({"event": "ready"}),
            stop=button,
            handle_signals=handle_signals,
        )
    except HelixError as error:
        emit({"event": "error", "kind": type(error).__name__, "message": str(error)})
        return error.exit_code
    except Exception as error:
        logger.exception("the worker failed")
        # Only its kind: an error of a library may quote anything.
        emit({"event": "error", "kind": "HelixError", "message": f"the worker failed: {type(error).__name__}"})
        return 1


def _detached() -> dict[str, Any]:
    """Keep the child out of reach of this terminal's Ctrl-C, which is for the parent to translate."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _parse(line: bytes) -> Event | None:
    """Read one report; what libraries print is none."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _error(kind: str, message: str) -> HelixError:
    """Rebuild the child's error, so that the command ends with the exit code the child's error has."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, HelixError):
        with suppress(TypeError):
            return found(message)
    return HelixError(message)


def main() -> int:
    """The child: run a worker until standard input ends."""
    from helix_jobs.jobs.worker import StopButton, StopRequest
    from helix_jobs.observability.logging import configure_logging
    from helix_jobs.settings import Settings

    settings = Settings.from_environment()
    configure_logging(settings.log_level, settings.log_format)
    button = StopButton()
    out: IO[str] = sys.stdout

    def emit(event: Event) -> None:
        # The parent may be gone; then standard input has ended as well.
        with suppress(OSError, ValueError):
            print(json.dumps(event), file=out, flush=True)

    def watch() -> None:
        for line in sys.stdin:
            if line.strip() == "now":
                button.press(StopRequest.INTERRUPT)
        button.press(StopRequest.INTERRUPT)
        if not button.armed:
            # Nobody reads the button while the models load.
            _thread.interrupt_main()

    threading.Thread(target=watch, name="helix-parent", daemon=True).start()
    return _run_reporting(settings, button, emit, handle_signals=True)


if __name__ == "__main__":
    sys.exit(main())
