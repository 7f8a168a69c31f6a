"""Board: what runs now. Read once a second at most, however many look, and not at all while nobody does."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from starlette.concurrency import run_in_threadpool

from helix_jobs.client.snapshot import Snapshot, SnapshotReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from helix_jobs.storage.database import Database

_FRESH_SECONDS: Final = 1.0
# A database that takes long is asked less often: reading for the page takes a tenth of its time at most.
_REST_OF_READING: Final = 10.0
# Batches whose status is read besides those that run.
_NEWEST: Final = 100


class Board:
    """Reads for everybody who looks. Used by the event loop's thread, except for the reading itself.

    Args:
        database: The database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reading: asyncio.Future[Snapshot] | None = None
        self._next_at = float("-inf")
        # Batch id -> how many look at it.
        self._watched: dict[str, int] = {}
        # Held while the database is read: two threads may do so where somebody comes in the middle.
        self._lock = threading.Lock()
        self._reader = SnapshotReader(database.time_limits.lease, _NEWEST)

    async def latest(self, *ids: str) -> Snapshot:
        """What was read in the last second, or is read now.

        Args:
            ids: Batches that have to be in it, if they are there.

        Raises:
            DatabaseUnreachableError: The database does not answer.
        """
        with self.watching(*ids):
            if self._reading is not None and self._reading.done() and not self._is_good(self._reading, ids):
                self._reading = None
            if self._reading is None:
                self._reading = asyncio.ensure_future(run_in_threadpool(self._read, tuple(self._watched)))
            found = await asyncio.shield(self._reading)
            if found.asked.issuperset(ids):
                return found
        # It was being read when this one came to look at its batches.
        return await run_in_threadpool(self._read, ids)

    @contextmanager
    def watching(self, *ids: str) -> Iterator[None]:
        """Have these batches read as well, for a while."""
        for batch_id in ids:
            self._watched[batch_id] = self._watched.get(batch_id, 0) + 1
        try:
            yield
        finally:
            for batch_id in ids:
                self._watched[batch_id] -= 1
                if not self._watched[batch_id]:
                    del self._watched[batch_id]

    def _is_good(self, reading: asyncio.Future[Snapshot], ids: Sequence[str]) -> bool:
        if reading.cancelled() or reading.exception() is not None:
            return False
        return time.monotonic() < self._next_at and reading.result().asked.issuperset(ids)

    def _read(self, watched: Sequence[str]) -> Snapshot:
        begun = time.monotonic()
        with self._lock, self._database.read() as c:
            found = self._reader.read(c, watched, begun)
        spent = time.monotonic() - begun
        self._next_at = begun + max(_FRESH_SECONDS, _REST_OF_READING * spent)
        return found
