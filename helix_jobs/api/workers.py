"""Workers: which workers are there, and what they serve. Read once a second at most."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from helix_jobs.api.problems import Problem
from helix_jobs.storage.liveness import seems_alive
from helix_jobs.storage.workers import live_workers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import Worker

_FRESH_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 5


class Workers:
    """The workers that seem alive. Every method may be called by any thread.

    Args:
        database: The database.
        lease: Seconds after whose silence a worker loses its jobs.
    """

    def __init__(self, database: Database, lease: float) -> None:
        self._database = database
        self._lease = lease
        self._lock = threading.Lock()
        self._found: tuple[Worker, ...] = ()
        self._read_at = float("-inf")

    def alive(self) -> Sequence[Worker]:
        """Those that have neither stopped nor fallen silent.

        Raises:
            DatabaseUnreachableError: The database does not answer.
        """
        with self._lock:
            if time.monotonic() - self._read_at > _FRESH_SECONDS:
                with self._database.read() as connection:
                    self._found = tuple(one for one in live_workers(connection) if seems_alive(one, self._lease))
                self._read_at = time.monotonic()
            return self._found

    def at_hand(self) -> Sequence[Worker] | None:
        """Those that ``alive`` has read a moment ago; None if they have to be read. Waits for nothing."""
        read_at = self._read_at  # before what was read then: another thread may read anew meanwhile
        found = self._found
        return found if time.monotonic() - read_at <= _FRESH_SECONDS else None

    def require_one(self) -> Worker:
        """One of them. Refuses a request that nobody would answer: its client waits.

        Raises:
            Problem: No worker runs.
        """
        if not (alive := self.alive()):
            raise Problem(
                503,
                "no worker runs; start one with `helix worker`, or serve with --local",
                code="no_worker",
                retry_after=_RETRY_SECONDS,
            )
        return alive[0]
