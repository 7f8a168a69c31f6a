"""GroupCommitWriter: many small writes, few commits.

Trade-off: an operation waits until 20 ms have passed since the last commit, which is at once where little is written;
in exchange up to 100 rows share an fsync, and a process has one writer, so its own threads never contend for SQLite's
lock.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy.exc import DBAPIError

from helix_jobs.errors import DatabaseUnreachableError, HelixError
from helix_jobs.observability.rounds import Rounds
from helix_jobs.storage.faults import lost_race

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from helix_jobs.storage.database import Database

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 2.0
# Seconds between log lines while writes wait; the first line comes at once.
_REMINDER_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Operation:
    function: Callable[[Connection], Any]
    future: Future[Any]


@dataclass(slots=True)
class WriteTrouble:
    """Tracks and logs a time in which the database takes no writes.

    Attributes:
        waiting: Writes in the group that is being retried; 0 while there is no trouble.
        retries: Failed tries since the start.
        reason: The database's last message; empty while there is no trouble.
    """

    waiting: int = 0
    retries: int = 0
    reason: str = ""
    _since: float = 0.0
    _said_at: float = 0.0

    def note(self, waiting: int, error: DatabaseUnreachableError) -> None:
        """Note that the database refused a group of ``waiting`` writes, which is kept and tried again."""
        now = time.monotonic()
        self.reason = str(error)
        if not self.waiting:
            self._since = now
        if not self.waiting or now - self._said_at >= _REMINDER_SECONDS:
            self._said_at = now
            logger.warning(
                "%d writes wait; this worker claims no job until the database takes them: %s", waiting, error
            )
        self.waiting = waiting
        self.retries += 1

    def end(self) -> None:
        """Note that the database answers again."""
        if self.waiting:
            self.waiting, self.reason = 0, ""
            seconds = time.monotonic() - self._since
            logger.warning("the database takes writes again, after %.1f s; none was lost", seconds)


class GroupCommitWriter:
    """One thread that runs submitted functions in shared write transactions.

    A future resolves only after the commit. A function that raises fails alone: the group is rolled back and each of
    its functions gets a transaction of its own. While the database is locked, unreachable or takes no writes, the
    writer retries the group without an end; nothing is dropped before ``close`` runs out of time. Claims pass through
    here too, so no new job is claimed meanwhile.

    A function may run several times, even after a commit whose answer was lost. So it must do nothing but work on its
    connection, and a repetition must be harmless, as it is for claim, finish and release.
    """

    def __init__(
        self, database: Database, max_rows: int = 100, max_delay: float = 0.02, rounds: Rounds | None = None
    ) -> None:
        self._database = database
        self._rounds = rounds or Rounds()
        self._came_round: Callable[[], None] = _unwatched
        self._max_rows = max_rows
        self._max_delay = max_delay
        self._wrote_at = float("-inf")
        self._operations: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        # When a group that cannot be written is given up; set by close().
        self._deadline = float("inf")
        self._trouble = WriteTrouble()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="helix-writer", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[Connection], T]) -> Future[T]:
        """Queue ``function`` for a write transaction; the future gets its value after the commit.

        Raises:
            HelixError: The writer is closed.
        """
        future: Future[T] = Future()
        # The lock orders this against close(): every accepted operation comes before the end mark.
        with self._lock:
            if self._closing.is_set():
                raise HelixError("the result writer is closed; this worker is shutting down")
            self._operations.put(_Operation(function, future))
        return future

    @property
    def waiting(self) -> int:
        """Writes kept because the database takes none; 0 while it takes writes."""
        return self._trouble.waiting + self._operations.qsize() if self._trouble.waiting else 0

    @property
    def trouble(self) -> str:
        """The database's last reason for taking no writes; empty while it takes them, or gives no reason."""
        return self._trouble.reason

    @property
    def retries(self) -> int:
        """How often a group of writes was tried again since the start."""
        return self._trouble.retries

    def close(self, timeout: float | None = 30.0) -> bool:
        """Write all submitted operations and end the thread.

        Args:
            timeout: Seconds to wait for a database that does not answer; None waits for ever. After that, unwritten
                operations fail with DatabaseUnreachableError; their jobs stay leased and are reclaimed later.

        Returns:
            Whether the thread has ended; False if it still hangs in a call to the database.
        """
        with self._lock:
            if not self._closing.is_set():
                self._deadline = float("inf") if timeout is None else time.monotonic() + timeout
                self._closing.set()
                self._operations.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        ended = False
        with self._rounds.watched("writer") as self._came_round:
            while not ended:
                group, ended = self._next_group()
                self._came_round()
                if group:
                    self._write(group)
                    self._wrote_at = time.monotonic()

    def _next_group(self) -> tuple[list[_Operation], bool]:
        """Wait for an operation, then for others to join it; the flag says that the end mark was met."""
        group: list[_Operation] = []
        deadline = self._wrote_at + self._max_delay
        idle = self._database.time_limits.idle_writer
        while len(group) < self._max_rows:
            try:
                remaining = max(0.0, deadline - time.monotonic()) if group else idle
                operation = self._operations.get(timeout=remaining)
            except queue.Empty:
                break
            if operation is None:
                return group, True
            if operation.future.set_running_or_notify_cancel():
                group.append(operation)
        return group, False

    def _write(self, group: Sequence[_Operation]) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            self._came_round()
            try:
                with self._database.write() as connection:
                    values = [self._apply(operation, connection) for operation in group]
            except DatabaseUnreachableError as error:
                if time.monotonic() + pause > self._deadline:
                    self._trouble.waiting = 0
                    _fail(group, error)
                    return
                self._trouble.note(len(group), error)
                self._closing.wait(pause) if not self._closing.is_set() else time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            except Exception as error:  # noqa: BLE001  (whatever it is, it belongs to one operation)
                self._trouble.end()
                if len(group) > 1:
                    for operation in group:
                        self._write([operation])
                elif isinstance(error, DBAPIError) and lost_race(error):
                    time.sleep(_FIRST_PAUSE_SECONDS)  # nothing was wrong with it but its timing
                    continue
                else:
                    group[0].future.set_exception(error)
                return
            else:
                self._trouble.end()
                break
        for operation, value in zip(group, values, strict=True):
            operation.future.set_result(value)

    def _apply(self, operation: _Operation, connection: Connection) -> Any:  # noqa: ANN401  (each function's own)
        value = operation.function(connection)
        self._came_round()
        return value


def _unwatched() -> None:
    """The watchdog callback until the thread runs: does nothing."""


def _fail(group: Sequence[_Operation], error: Exception) -> None:
    logger.error("this worker gave up %d writes at shutdown: %s", len(group), error)
    for operation in group:
        operation.future.set_exception(error)
