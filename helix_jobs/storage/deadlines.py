"""Deadlines: the batches that have one, and jobs that are made more urgent so that it is kept."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select, text, update

from helix_jobs.errors import NotFoundError, UnreadableRowError
from helix_jobs.storage.notices import SLIPPING, add_notice, batch_notice
from helix_jobs.storage.schema import TAKES_JOBS, batches, jobs
from helix_jobs.storage.status import batch_status

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection, Select

    from helix_jobs.storage.records import BatchStatus

# Literal conditions: SQLite uses a partial index only for a query that repeats its condition word for word.
_UNPUBLISHED: Final = text("state = 'queued' AND published_at IS NULL")
_PUBLISHED: Final = text("state = 'queued' AND published_at IS NOT NULL")
_QUEUED: Final = text("state = 'queued'")


def batches_with_deadlines(c: Connection) -> list[BatchStatus]:
    """The batches with a deadline whose jobs wait, the most pressing first; unreadable ones are left out."""
    some = select(1).where(jobs.c.batch_id == batches.c.id, _QUEUED).limit(1).scalar_subquery()
    query = select(batches.c.id).where(batches.c.deadline.is_not(None), TAKES_JOBS, some.is_not(None))
    found = []
    for batch_id in c.execute(query.order_by(batches.c.deadline)).scalars().all():
        # One by one: a batch that cannot be read must not keep the others from their deadlines.
        with suppress(NotFoundError, UnreadableRowError):
            found.append(batch_status(c, batch_id))
    return found


def lowest_priority(c: Connection, batch_id: str) -> int | None:
    """The lowest priority among the jobs of a batch that wait; None if none waits."""
    lowest = [
        c.execute(select(func.min(jobs.c.priority)).where(condition, jobs.c.batch_id == batch_id)).scalar_one()
        for condition in (_UNPUBLISHED, _PUBLISHED)
    ]
    return min((int(one) for one in lowest if one is not None), default=None)


def next_priority(c: Connection, batch_id: str, most: int) -> int | None:
    """The lowest priority among the jobs of a batch that begin next, ``most`` beside those that the broker holds."""
    first = _first(batch_id, most).subquery()
    held = select(func.min(jobs.c.priority)).where(_PUBLISHED, jobs.c.batch_id == batch_id)
    lowest = [c.execute(query).scalar_one() for query in (select(func.min(first.c.priority)), held)]
    return min((int(one) for one in lowest if one is not None), default=None)


def raise_priority(c: Connection, batch_id: str, to: int, most: int) -> int:
    """Let waiting jobs of a batch, the first of them, have at least this priority; returns how many were raised.

    Jobs whose messages the broker holds are all raised, and sent anew: their old messages then find them claimed.

    Args:
        c: A write transaction.
        batch_id: The batch.
        to: The priority.
        most: Raise so many of the others at most.
    """
    held = c.execute(
        update(jobs)
        .where(_PUBLISHED, jobs.c.batch_id == batch_id, jobs.c.priority < to)
        .values(priority=to, published_at=None)
    ).rowcount
    first = _first(batch_id, most).where(jobs.c.priority < to).with_only_columns(jobs.c.id)
    raised = c.execute(update(jobs).where(jobs.c.id.in_(first), _QUEUED).values(priority=to)).rowcount
    return held + raised


def _first(batch_id: str, most: int) -> Select[tuple[int, int]]:
    """Waiting jobs that no message stands for, the first to begin of a batch."""
    waiting = select(jobs.c.id, jobs.c.priority).where(_UNPUBLISHED, jobs.c.batch_id == batch_id)
    return waiting.order_by(jobs.c.priority.desc(), jobs.c.id).limit(most)


def note_slipping(c: Connection, status: BatchStatus, why: str, now: datetime) -> bool:
    """Note, and have people told, that a deadline will probably be missed; False if that was said before."""
    untold = batches.c.id == status.id, batches.c.deadline_told_at.is_(None)
    if not c.execute(update(batches).where(*untold).values(deadline_told_at=now)).rowcount:
        return False
    add_notice(c, batch_notice(c, SLIPPING, status, why=why), now)
    return True
