"""Notices: what people are told of, stored in the transaction of what it tells, and sent some time after.

``due_at`` is the queue: whoever moves a due notice's ``due_at`` into the future sends it. If that process dies, the
notice is soon due again. So a notice is sent once at least; its id tells a receiver that it comes for the second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import insert, select, update

from helix_jobs.storage.readable import fetch_all, readable_rows
from helix_jobs.storage.schema import api_batches, notices
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from helix_jobs.storage.records import BatchStatus

# OpenAI's names.
COMPLETED: Final = "batch.completed"
FAILED: Final = "batch.failed"
EXPIRED: Final = "batch.expired"
CANCELLED: Final = "batch.cancelled"
# Helix's own.
PAUSED: Final = "helix.batch.paused"
FAILING: Final = "helix.batch.failing"
SLIPPING: Final = "helix.deadline.slipping"
TEST: Final = "helix.test"

# For so long a notice is tried.
PATIENCE: Final = timedelta(hours=72)
_FIRST_SECONDS: Final = 5.0
_GROWTH: Final = 4
_LONGEST_SECONDS: Final = 3600.0
# Longer than all channels together may take; after that, another process takes the notice.
_HELD: Final = timedelta(minutes=5)
_CANDIDATES: Final = 8


@dataclass(frozen=True, slots=True)
class NewNotice:
    """Something to tell.

    Attributes:
        kind: What has happened.
        data: What there is to say of it; no prompt and no answer.
        batch_id: The batch with which the notice is purged; None where there is none.
    """

    kind: str
    data: Mapping[str, Any]
    batch_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A stored notice that this process sends.

    Attributes:
        attempts: How often it was sent, this time included.
        due_at: Until when no other process sends it.
        reached: The channels that have taken it before.
    """

    id: str
    kind: str
    data: Mapping[str, Any]
    created_at: datetime
    attempts: int
    due_at: datetime
    reached: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldNotice:
    """A stored notice, and how far it has come.

    Attributes:
        due_at: When it is sent next; None if it was delivered or is given up.
        error: Why the last attempt failed.
    """

    id: str
    batch_id: str | None
    kind: str
    created_at: datetime
    attempts: int
    due_at: datetime | None
    delivered_at: datetime | None
    error: str | None

    @property
    def state(self) -> str:
        """In words."""
        if self.delivered_at is not None:
            return "delivered"
        if self.due_at is None:
            return "given up" if self.error is None else f"given up: {self.error}"
        return "waits" if self.error is None else f"tried {self.attempts} times: {self.error}"


def new_notice_id() -> str:
    """A fresh id, ``evt_`` and 32 digits in hex."""
    return f"evt_{token_hex(16)}"


def add_notice(c: Connection, notice: NewNotice, now: datetime) -> str:
    """Store something to tell, in the transaction of what it tells; returns its id."""
    notice_id = new_notice_id()
    values = {"id": notice_id, "batch_id": notice.batch_id, "kind": notice.kind, "data": dict(notice.data)}
    c.execute(insert(notices).values(**values, created_at=now, due_at=now))
    return notice_id


def batch_notice(c: Connection, kind: str, status: BatchStatus, **more: Any) -> NewNotice:  # noqa: ANN401  (JSON)
    """What there is to tell of a batch. One that came over HTTP is named as its client knows it."""
    api_id = c.execute(select(api_batches.c.id).where(api_batches.c.batch_id == status.id)).scalar()
    data = {
        "id": api_id or status.id,
        "batch_id": status.id,
        "name": status.name,
        "request_counts": {
            "total": status.stored,
            "completed": status.counts[JobState.SUCCEEDED],
            "failed": status.counts[JobState.FAILED],
            "cancelled": status.counts[JobState.CANCELLED],
        },
        "errors": dict(status.error_counts),
        **more,
    }
    return NewNotice(kind, data, status.id)


def take_due(c: Connection, now: datetime) -> Notice | None:
    """Take the notice that has been due longest, if any; no other process sends it for some minutes."""
    columns = ("id", "kind", "data", "created_at", "attempts", "due_at", "reached")
    due = select(*(notices.c[name] for name in columns)).where(notices.c.due_at <= now)
    due = due.where(notices.c.created_at > now - PATIENCE)
    for row in readable_rows(c, due.order_by(notices.c.due_at).limit(_CANDIDATES), notices.c.id):
        held, attempts = now + _HELD, row.attempts + 1
        which = (notices.c.id == row.id, notices.c.due_at == row.due_at)
        if c.execute(update(notices).where(*which).values(due_at=held, attempts=attempts)).rowcount:
            values = {**row._mapping, "attempts": attempts, "due_at": held}  # noqa: SLF001  (SQLAlchemy's documented name)
            return Notice(**{**values, "reached": tuple(row.reached or ())})
    return None


def is_any_due(c: Connection, now: datetime) -> bool:
    """Whether a notice is due."""
    return c.execute(select(notices.c.id).where(notices.c.due_at <= now).limit(1)).first() is not None


def newest_notices(c: Connection, limit: int) -> Sequence[ToldNotice]:
    """The newest notices first."""
    columns = [notices.c[name] for name in ToldNotice.__slots__]
    query = select(*columns).order_by(notices.c.created_at.desc(), notices.c.id).limit(limit)
    return [ToldNotice(**row._mapping) for row in fetch_all(c, query)]  # noqa: SLF001  (SQLAlchemy's documented name)


def settle(c: Connection, notice: Notice, reached: tuple[str, ...], error: str | None, now: datetime) -> bool:
    """Note how the sending went, unless another process has taken the notice meanwhile.

    Args:
        c: A write transaction.
        notice: As it was taken.
        reached: Every channel that has it now.
        error: Why a channel has it not; None if all have.
        now: The time.

    Returns:
        Whether the notice is given up.
    """
    next_at = now + timedelta(seconds=pause_after(notice.attempts))
    given_up = error is not None and next_at > notice.created_at + PATIENCE
    values = {
        "reached": list(reached),
        "error": error,
        "due_at": None if error is None or given_up else next_at,
        "delivered_at": now if error is None else None,
    }
    c.execute(update(notices).where(notices.c.id == notice.id, notices.c.due_at == notice.due_at).values(values))
    return given_up


def forget_old(c: Connection, now: datetime) -> int:
    """Give up the notices that nobody has sent for days; returns how many."""
    old = (notices.c.due_at <= now, notices.c.created_at <= now - PATIENCE)
    return c.execute(update(notices).where(*old).values(due_at=None)).rowcount


def pause_after(attempts: int) -> float:
    """Seconds until a notice is sent again that was sent so often: 5, 20, 80, 320, 1,280, then an hour each."""
    return min(_FIRST_SECONDS * float(_GROWTH) ** min(attempts - 1, 10), _LONGEST_SECONDS)
