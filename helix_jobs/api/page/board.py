"""Board: what runs now. Read once a second at most, however many look, and not at all while nobody does."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from starlette.concurrency import run_in_threadpool

from helix_jobs.client.pace import Pace, PaceMeter
from helix_jobs.storage.api_batches import unaccepted
from helix_jobs.storage.liveness import seems_alive
from helix_jobs.storage.queue_figures import lease_holders
from helix_jobs.storage.seen_batches import Label, QueueTotals, current_ids, labels, queue_totals
from helix_jobs.storage.status import batch_statuses
from helix_jobs.storage.workers import live_workers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Connection

    from helix_jobs.storage.api_records import ApiBatch
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import BatchStatus, Worker

_FRESH_SECONDS: Final = 1.0
# A database that takes long is asked less often: reading for the page takes a tenth of its time at most.
_REST_OF_READING: Final = 10.0
# Batches whose status is read besides those that run.
_NEWEST: Final = 100
# Meters of batches that nobody has asked for so long begin anew.
_FORGET_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class WorkerNow:
    """A worker.

    Attributes:
        worker: Its row.
        is_alive: Whether it seems alive.
        claimed: Jobs that it holds: those in its slots, and a few ahead.
    """

    worker: Worker
    is_alive: bool
    claimed: int

    @property
    def running(self) -> int:
        """Jobs in its slots."""
        return min(self.claimed, self.worker.slots)


@dataclass(frozen=True, slots=True)
class BatchNow:
    """A batch.

    Attributes:
        status: Its counts.
        pace: How fast it goes on.
        label: Whose it is, and what it is called.
    """

    status: BatchStatus
    pace: Pace
    label: Label


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment.

    Attributes:
        workers: The workers, oldest first.
        totals: Sums over all batches.
        pace: Of all batches together.
        batches: Id -> batch, newest first: the newest, those that run, and those that somebody looks at.
        unaccepted: Batches over HTTP without jobs, newest first, and the names of their files.
        asked: The batches that were looked for because somebody looks at them.
    """

    workers: Sequence[WorkerNow]
    totals: QueueTotals
    pace: Pace
    batches: Mapping[str, BatchNow]
    unaccepted: Sequence[tuple[ApiBatch, str | None]]
    asked: frozenset[str]

    @property
    def running(self) -> int:
        """Jobs in slots."""
        return sum(one.running for one in self.workers)

    @property
    def queued(self) -> int:
        """Jobs that wait for a slot."""
        return max(0, self.totals.total - self.totals.finished - self.running)


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
        self._meter = PaceMeter()
        # Batch id -> its meter, and when it was last used.
        self._meters: dict[str, tuple[PaceMeter, float]] = {}

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
            found = self._snapshot(c, watched, begun)
        spent = time.monotonic() - begun
        self._next_at = begun + max(_FRESH_SECONDS, _REST_OF_READING * spent)
        return found

    def _snapshot(self, c: Connection, watched: Sequence[str], now: float) -> Snapshot:
        ids = list(dict.fromkeys([*current_ids(c, _NEWEST), *watched]))
        statuses, found_labels, totals = batch_statuses(c, ids), labels(c, ids), queue_totals(c)
        holders = {holder.worker_id: holder.leases for holder in lease_holders(c)}
        lease = self._database.time_limits.lease
        return Snapshot(
            workers=[WorkerNow(one, seems_alive(one, lease), holders.get(one.id, 0)) for one in live_workers(c)],
            totals=totals,
            pace=self._meter.update(now, totals),
            batches={
                batch_id: BatchNow(statuses[batch_id], self._pace(statuses[batch_id], now), found_labels[batch_id])
                for batch_id in ids
                if batch_id in statuses
            },
            unaccepted=unaccepted(c, _NEWEST),
            asked=frozenset(watched),
        )

    def _pace(self, status: BatchStatus, now: float) -> Pace:
        if status.done:
            self._meters.pop(status.id, None)
            return Pace(tokens_per_second=status.tokens_per_second)
        for batch_id, (_, used_at) in list(self._meters.items()):
            if now - used_at > _FORGET_SECONDS:
                del self._meters[batch_id]
        meter, _ = self._meters.get(status.id, (PaceMeter(), now))
        self._meters[status.id] = (meter, now)
        return meter.update(now, status)
