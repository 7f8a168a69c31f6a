"""Snapshot: what runs now, of all batches and workers, for whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from helix_jobs.client.pace import Pace, PaceMeter
from helix_jobs.storage.api_batches import unaccepted
from helix_jobs.storage.liveness import seems_alive
from helix_jobs.storage.queue_figures import lease_holders
from helix_jobs.storage.seen_batches import Label, QueueTotals, current_ids, labels, queue_totals
from helix_jobs.storage.status import batch_statuses
from helix_jobs.storage.workers import live_workers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from helix_jobs.storage.api_records import ApiBatch
    from helix_jobs.storage.records import BatchStatus, Worker

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


class SnapshotReader:
    """Reads snapshots, and measures the pace from one to the next. For one thread at a time.

    Args:
        lease: Seconds of silence after which a worker seems lost.
        newest: Batches whose status is read besides those that run.
    """

    def __init__(self, lease: float, newest: int) -> None:
        self._lease = lease
        self._newest = newest
        self._meter = PaceMeter()
        # Batch id -> its meter, and when it was last used.
        self._meters: dict[str, tuple[PaceMeter, float]] = {}

    def read(self, c: Connection, watched: Sequence[str], now: float) -> Snapshot:
        """Everything at this moment.

        Args:
            c: A read transaction.
            watched: Batches that have to be in it, if they are there.
            now: Monotonic seconds.

        Raises:
            UnreadableRowError: A value cannot be read.
        """
        ids = list(dict.fromkeys([*current_ids(c, self._newest), *watched]))
        statuses, found_labels, totals = batch_statuses(c, ids), labels(c, ids), queue_totals(c)
        holders = {holder.worker_id: holder.leases for holder in lease_holders(c)}
        return Snapshot(
            workers=[WorkerNow(one, seems_alive(one, self._lease), holders.get(one.id, 0)) for one in live_workers(c)],
            totals=totals,
            pace=self._meter.update(now, totals),
            batches={
                batch_id: BatchNow(statuses[batch_id], self._pace(statuses[batch_id], now), found_labels[batch_id])
                for batch_id in ids
                if batch_id in statuses
            },
            unaccepted=unaccepted(c, self._newest),
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
