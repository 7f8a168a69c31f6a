"""Braking: find the batches with brakes, and pause one whose brake says so."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import case, func, select, update

from helix_jobs.brakes import Brakes
from helix_jobs.errors import InputError, NotFoundError, UnreadableRowError
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.batch_changes import lock_batch
from helix_jobs.storage.brake_ledger import Ledger
from helix_jobs.storage.notices import PAUSED, add_notice, batch_notice
from helix_jobs.storage.pausing import pause_batch
from helix_jobs.storage.readable import readable_rows
from helix_jobs.storage.schema import TAKES_JOBS, batch_counters, batches
from helix_jobs.storage.states import JobState
from helix_jobs.storage.status import batch_status

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

    from helix_jobs.storage.records import BatchStatus

# How often the time that a batch has run is written.
LEDGER_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class BrakedBatch:
    """A batch with brakes, of which jobs wait or run."""

    status: BatchStatus
    brakes: Brakes
    ledger: Ledger

    def is_due(self, now: datetime) -> bool:
        """Whether ``brake`` has something to write."""
        seen = self.ledger.look(self.status, now)
        if self.brakes.stop(seen.spent(self.status)) is not None or seen.counts != self.ledger.counts:
            return True
        if self.brakes.max_hours is None or seen.seen_at is None or self.ledger.seen_at is None:
            return self.brakes.max_hours is not None and seen.seen_at != self.ledger.seen_at
        return abs((now - self.ledger.seen_at).total_seconds()) >= LEDGER_SECONDS


@dataclass(frozen=True, slots=True)
class Braked:
    """A batch that a brake has paused: why, and how many of its jobs wait."""

    batch_id: str
    why: str
    waiting: int


def braked_batches(c: Connection) -> list[BrakedBatch]:
    """The batches that may run, have brakes and are not done; those whose brakes cannot be read are left out.

    ``helix db check`` names them.
    """
    signed = case((batch_counters.c.outcome == counters.STORED, batch_counters.c.jobs), else_=-batch_counters.c.jobs)
    left = (
        select(func.sum(signed)).where(batch_counters.c.batch_id == batches.c.id).correlate(batches).scalar_subquery()
    )
    query = select(batches.c.id, batches.c.brakes, batches.c.brake_ledger)
    # Whoever notes ends spares this query the sums of batches that ended long ago.
    query = query.where(batches.c.brakes.is_not(None), batches.c.end_noted_at.is_(None), TAKES_JOBS, left > 0)
    found = []
    for row in readable_rows(c, query, batches.c.id):
        brakes = _brakes(row.brakes)
        # One by one: a batch that cannot be read must not release the brakes of all others.
        with suppress(NotFoundError, UnreadableRowError):
            if brakes is not None:
                found.append(BrakedBatch(batch_status(c, row.id), brakes, Ledger.from_stored(row.brake_ledger)))
    return found


def brake(c: Connection, batch_id: str, now: datetime) -> Braked | None:
    """Look at one batch again, keep its ledger, and pause it if a brake says so.

    Returns None if nothing was paused: no brake says so, nothing waits, or somebody else was first.
    """
    try:
        lock_batch(c, batch_id)
    except NotFoundError:  # purged meanwhile
        return None
    query = select(batches.c.brakes, batches.c.brake_ledger).where(batches.c.id == batch_id, TAKES_JOBS)
    row = c.execute(query).first()
    brakes = None if row is None else _brakes(row.brakes)
    if row is None or brakes is None:
        return None
    status = batch_status(c, batch_id)
    ledger = Ledger.from_stored(row.brake_ledger).look(status, now)
    c.execute(update(batches).where(batches.c.id == batch_id).values(brake_ledger=ledger.to_dict()))
    stop = brakes.stop(ledger.spent(status))
    if stop is None or not status.counts[JobState.QUEUED]:
        return None
    why = stop.why
    if stop.brake == "stop_if_failing" and status.error_counts:
        code, count = max(status.error_counts.items(), key=lambda item: item[1])
        why += f"; the most frequent error is {code}, {count:,} in all"
    waiting = pause_batch(c, batch_id, now=now, why=why)
    if waiting:
        add_notice(c, batch_notice(c, PAUSED, status, why=why), now)
    return Braked(batch_id, why, waiting)


def _brakes(stored: Any) -> Brakes | None:  # noqa: ANN401  (JSON)
    try:
        return Brakes.from_mapping(stored) if isinstance(stored, dict) else None
    except InputError:
        return None
