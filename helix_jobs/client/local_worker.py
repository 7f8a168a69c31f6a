"""LocalWorker: the worker behind ``submit --local``: started if none runs, stopped by the last command that uses it."""

from __future__ import annotations

import logging
import queue
import sys
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

from helix_jobs import errors
from helix_jobs.client.local_process import STOP_SECONDS, LocalProcess
from helix_jobs.errors import DatabaseUnreachableError, DeviceInUseError, HelixError, HomeInUseError
from helix_jobs.local_users import LOG_NAME, LocalUsers
from helix_jobs.redis_url import MEMORY_URL
from helix_jobs.storage.liveness import seems_alive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from helix_jobs.client.local_process import Event, StartedWorker
    from helix_jobs.settings import Settings
    from helix_jobs.storage.database import Database

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
# Seconds to wait while another worker holds device or home. A worker of this database has no row while it loads its
# models, and an old heartbeat after the machine slept; both pass. A worker of another database never gets a row here.
DEVICE_PATIENCE: Final = 120.0
_DEVICE_RETRY_SECONDS: Final = 5.0
# Above three: a job that kills its worker does so three times before it is given up.
MAX_DEATHS: Final = 5


class LocalWorker:
    """Makes sure that a worker runs during the ``with`` block.

    Entering returns when a worker is ready. A worker that already runs is used. Of several commands that start at the
    same moment, one starts a worker and all use it; the last one to leave stops it. A worker that was not started
    this way is left alone.

    Args:
        settings: The effective settings.
        start_thread: Starts a worker on a thread of this process, for a broker in this process's memory. Pass the
            worker's class ``WorkerThread``, which the client does not import.
        on_progress: Called on the calling thread, on entering and on leaving, with one line on the current step.

    Attributes:
        started: Whether this object started a worker.
        log_path: The worker's log; None if it shares this process, or none was started.
    """

    def __init__(
        self,
        settings: Settings,
        start_thread: Callable[[Settings, Callable[[Event], None]], StartedWorker],
        *,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        self._settings = settings
        self._start_thread = start_thread
        # Windows has no embedded broker.
        self._in_memory = settings.redis_url == MEMORY_URL or (sys.platform == "win32" and settings.redis_url is None)
        self._on_progress = on_progress or (lambda _: None)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._worker: StartedWorker | None = None
        self._users = LocalUsers(settings.make_home())
        self._opened: Database | None = None
        # The current step towards a worker; None while there is one.
        self._doing: str | None = "looking for a worker"
        self._deaths = 0
        # The child found the device or the home taken, so its end does not count as a death.
        self._refused = False
        self._taken_at: float | None = None
        self._not_before = 0.0
        self._told: str | None = None
        self._entering = True
        self.started = False
        self.log_path: Path | None = None

    def __enter__(self) -> Self:
        try:
            while not self._users.enter():
                self._tell("waiting for the worker that is stopping")
                time.sleep(POLL_SECONDS)
            while (doing := self.check()) is not None:
                self._tell(doing)
                # On Windows, Ctrl-C cannot interrupt a wait without a timeout.
                with suppress(queue.Empty):
                    self._handle(self._events.get(timeout=POLL_SECONDS))
        except BaseException as error:
            self._leave_after(error)
            raise
        self._entering = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an interrupt do not wait for the running jobs: they go back to the queue.
        if error is None:
            self._leave(now=False)
        else:
            self._leave_after(error)

    def check(self) -> str | None:
        """Check that a worker runs, and start one if not. Call it repeatedly while waiting for results.

        Returns:
            One line on the current step towards a worker; None while there is one.

        Raises:
            HelixError: No worker can be started, or the worker ends by itself again and again; the message names its
                log.
        """
        with suppress(queue.Empty):
            while True:
                self._handle(self._events.get_nowait())
        if self._worker is None:
            self._find_or_start()
        return self._doing

    def _find_or_start(self) -> None:
        if self._one_is_there():
            self._doing, self._taken_at = None, None
            self._users.starter.release()
        elif time.monotonic() < self._not_before:
            return
        elif not self._users.starter.acquire():
            self._doing = "waiting for the worker that another command starts"
        elif self._one_is_there():  # the other command was faster
            self._find_or_start()
        else:
            self._start()

    def _start(self) -> None:
        self._doing = self._doing if self._deaths else "starting a worker"
        if self._in_memory:
            self._worker = self._start_thread(replace(self._settings, redis_url=MEMORY_URL), self._events.put)
        else:
            self.log_path = self._settings.make_home() / LOG_NAME
            self._worker = LocalProcess(self._settings, self.log_path, self._events.put)
        self.started = True

    def _handle(self, event: Event) -> None:
        name = str(event.get("event"))
        if name == "progress":
            self._doing = str(event.get("message"))
            if self._entering:
                self._tell(self._doing)
        elif name == "ready":
            self._doing, self._taken_at = None, None
            self._users.starter.release()
        elif name == "error":
            error = _error(str(event.get("kind")), str(event.get("message")))
            if not isinstance(error, DeviceInUseError | HomeInUseError):
                raise error
            self._refused = True
            self._wait_for_other(error)
        elif name == "ended":
            self._bury()
            if not self._refused:
                self._mourn(event.get("code"))
            self._refused = False

    def _bury(self) -> None:
        """Free the resources of a worker that has ended."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.leave(now=False)
            worker.wait_stopped()

    def _mourn(self, code: object) -> None:
        """Count a worker that ended by itself, and have it restarted, unless it is the ``MAX_DEATHS``th."""
        self._users.starter.release()
        self._deaths += 1
        where = "" if self.log_path is None else f"; see {self.log_path}"
        if self._deaths >= MAX_DEATHS:
            raise HelixError(f"the local worker ended by itself {self._deaths} times (exit code {code}){where}")
        self._doing = f"the worker ended by itself (exit code {code}{where}); starting it again"
        logger.warning("%s", self._doing)

    def _wait_for_other(self, error: DeviceInUseError | HomeInUseError) -> None:
        """Wait for another worker that holds device or home: if it serves this database, it is ready soon."""
        holder, remedy = "worker that holds the device", "stop it, or set HELIX_DEVICE to another device"
        if isinstance(error, HomeInUseError):
            holder = f"local worker that already runs under {self._settings.home}"
            remedy = "wait if it still loads its models, end the commands that use it, or set HELIX_HOME to another one"
        now = time.monotonic()
        self._taken_at = now if self._taken_at is None else self._taken_at
        if now - self._taken_at >= DEVICE_PATIENCE:
            what = str(error).partition(";")[0]
            raise type(error)(f"{what} and does not serve this database; {remedy}") from error
        self._doing = f"waiting for the {holder}"
        self._not_before = now + _DEVICE_RETRY_SECONDS

    def _one_is_there(self) -> bool:
        """Whether a worker serves this database; True while the database does not answer, as it then cannot tell."""
        if self._opened is None:
            self._opened = _open(self._settings)
            return _any_alive(self._opened)
        try:
            return _any_alive(self._opened)
        except DatabaseUnreachableError:
            return True

    def _leave_after(self, error: BaseException) -> None:
        """Leave after an error. If leaving fails too, the first error must still be the one raised."""
        try:
            self._leave(now=True)
        except (HelixError, OSError) as second:
            error.add_note(f"stopping the worker failed too: {second}")

    def _leave(self, *, now: bool) -> None:
        worker, self._worker = self._worker, None
        self._users.starter.release()
        alone = self._users.leave()
        if worker is not None:
            if alone:
                self._tell("stopping the worker")
            worker.leave(now=now)
            if alone or self._in_memory:
                worker.wait_stopped()
        elif alone and not now and self._users.is_worker_there():
            self._wait_for_another_commands_worker()
        if self._opened is not None:
            self._opened.dispose()

    def _wait_for_another_commands_worker(self) -> None:
        self._tell("stopping the worker")
        deadline = time.monotonic() + self._settings.shutdown_grace + STOP_SECONDS
        while self._users.is_worker_there() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _tell(self, line: str) -> None:
        if line != self._told:
            self._on_progress(line)
        self._told = line


def _open(settings: Settings) -> Database:
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.migration import ensure_schema

    database = Database(settings.database_url)
    try:
        ensure_schema(database)
    except BaseException:
        database.dispose()
        raise
    return database


def _any_alive(database: Database) -> bool:
    from helix_jobs.storage import workers

    with database.read() as c:
        return any(seems_alive(worker, database.time_limits.lease) for worker in workers.live_workers(c))


def _error(kind: str, message: str) -> HelixError:
    """Rebuild the child's error, so that the command ends with that error's exit code."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, HelixError):
        with suppress(TypeError):
            return found(message)
    return HelixError(message)
