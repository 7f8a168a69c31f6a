"""JobWatch: tells each request that waits when its job has ended. One reader of the database for all of them."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import HelixError, without_text
from helix_jobs.storage.single_request import ended_jobs, missing_jobs

if TYPE_CHECKING:
    from helix_jobs.storage.database import Database

logger = logging.getLogger(__name__)

# Trade-off: shorter, and the database is read more often while somebody waits; longer, and each answer waits longer.
POLL_SECONDS: Final = 0.01
_AFTER_ERROR_SECONDS: Final = 1.0
# Jobs looked up at once, and the rounds after which one looks whether they are there at all.
_CHUNK: Final = 500
_ROUNDS_TO_MISSING: Final = 500


class JobWatch:
    """Waits for jobs to end.

    Reads on a thread of its own, and only while somebody waits. An outage of the database only delays answers.

    Args:
        database: The database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._waiting: dict[int, list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        self._wanted = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="helix-watch", daemon=True)
        self._thread.start()

    def watch(self, job_id: int) -> asyncio.Event:
        """An event of this loop that is set once the job has ended, or is not there any more."""
        ended = asyncio.Event()
        with self._lock:
            self._waiting.setdefault(job_id, []).append((asyncio.get_running_loop(), ended))
        self._wanted.set()
        return ended

    def forget(self, job_id: int, ended: asyncio.Event) -> None:
        """Nobody waits for this event any more."""
        with self._lock:
            left = [entry for entry in self._waiting.get(job_id, []) if entry[1] is not ended]
            if left:
                self._waiting[job_id] = left
            else:
                self._waiting.pop(job_id, None)

    def close(self) -> None:
        """End the thread."""
        self._stopping = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        rounds = 0
        while not self._stopping:
            with self._lock:
                waited = list(self._waiting)
                if not waited:
                    self._wanted.clear()
            if not waited:
                self._wanted.wait()
                continue
            rounds += 1
            try:
                for start in range(0, len(waited), _CHUNK):
                    self._look(waited[start : start + _CHUNK], missing=rounds % _ROUNDS_TO_MISSING == 0)
            except HelixError as error:
                logger.warning("answers are waited for, but the database does not tell: %s", error)
                self._pause(_AFTER_ERROR_SECONDS)
            except Exception as error:  # nobody would be answered any more
                logger.exception("answers are waited for, but cannot be looked up", exc_info=without_text(error))
                self._pause(_AFTER_ERROR_SECONDS)
            self._pause(POLL_SECONDS)

    def _look(self, job_ids: list[int], *, missing: bool) -> None:
        with self._database.read() as connection:
            found = set(ended_jobs(connection, job_ids))
            if missing:
                found |= missing_jobs(connection, job_ids)
        for job_id in found:
            with self._lock:
                entries = self._waiting.pop(job_id, [])
            for loop, ended in entries:
                loop.call_soon_threadsafe(ended.set)

    def _pause(self, seconds: float) -> None:
        if not self._stopping:
            threading.Event().wait(seconds)
