"""Batches that were asked for over HTTP: created, claimed by the server that works at them, and closed.

``due_at`` is the queue: the first server that moves a due batch's ``due_at`` into the future works at it, and moves it
on as long as it does. A server that dies leaves a batch that is soon due again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import case, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from helix_jobs.errors import IdempotencyConflictError, NotFoundError
from helix_jobs.storage.api_pages import read_page
from helix_jobs.storage.api_records import ApiBatch
from helix_jobs.storage.notices import CANCELLED, EXPIRED, FAILED, NewNotice, add_notice
from helix_jobs.storage.readable import fetch_all
from helix_jobs.storage.schema import BATCH_IS_THERE, api_batches, api_files, batches, jobs, notices, results

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Row

    from helix_jobs.storage.api_records import NewApiBatch, Page

_INSERT: Final[dict[str, Any]] = {
    "sqlite": sqlite.insert(api_batches).on_conflict_do_nothing(index_elements=["idempotency_key"]),
    "postgresql": postgresql.insert(api_batches).on_conflict_do_nothing(index_elements=["idempotency_key"]),
}
# Another server may take the first ones at the same moment.
_CANDIDATES: Final = 8
# The removal of its jobs has not begun.
_IS_THERE: Final = or_(
    api_batches.c.batch_id.is_(None),
    select(batches.c.id).where(batches.c.id == api_batches.c.batch_id, BATCH_IS_THERE).exists(),
)
# When a batch ended without jobs.
_CLOSED_AT: Final = func.coalesce(api_batches.c.failed_at, api_batches.c.cancelled_at, api_batches.c.expired_at)
_ASKED_FOR: Final = ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after")


def create_api_batch(c: Connection, new: NewApiBatch) -> ApiBatch:
    """Store a batch that is due at once, or return the one that its idempotency key already names.

    Raises:
        IdempotencyConflictError: The key names a batch that was asked for otherwise.
    """
    values = {
        "id": new.id,
        "owner": new.owner,
        **{name: getattr(new, name) for name in _ASKED_FOR},
        "idempotency_key": new.idempotency_key,
        "created_at": new.created_at,
        "expires_at": new.expires_at,
        "due_at": new.created_at,
    }
    if c.execute(_INSERT[c.dialect.name].returning(api_batches.c.id), values).first() is not None:
        return _one(c, api_batches.c.id == new.id)
    stored = _one(c, api_batches.c.idempotency_key == new.idempotency_key)
    if any(getattr(stored, name) != getattr(new, name) for name in _ASKED_FOR):
        raise IdempotencyConflictError(
            "the idempotency key already names a batch that was asked for otherwise; use another key"
        )
    return stored


def get_api_batch(c: Connection, owner: str, api_id: str) -> ApiBatch:
    """An owner's batch.

    Raises:
        NotFoundError: The owner has no such batch.
    """
    return _one(c, api_batches.c.id == api_id, api_batches.c.owner == owner, _IS_THERE)


def find_api_batch(c: Connection, api_id: str) -> ApiBatch:
    """A batch, whoever's it is.

    Raises:
        NotFoundError: There is no such batch.
    """
    return _one(c, api_batches.c.id == api_id, _IS_THERE)


def list_api_batches(c: Connection, owner: str, page: Page) -> list[ApiBatch]:
    """A page of an owner's batches, and one more if there are more.

    Raises:
        NotFoundError: The owner has no batch ``page.after``.
    """
    return [_batch(row) for row in read_page(c, api_batches, select(api_batches).where(_IS_THERE), owner, page)]


def unaccepted(c: Connection, limit: int) -> list[tuple[ApiBatch, str | None]]:
    """Each owner's newest batches whose lines are not accepted, or not yet, and the names of their files."""
    newest_first = api_batches.c.created_at.desc()
    place = func.row_number().over(partition_by=api_batches.c.owner, order_by=newest_first).label("place")
    places = select(api_batches.c.id, place).where(api_batches.c.batch_id.is_(None)).subquery()
    query = select(api_batches, api_files.c.filename.label("file_name")).select_from(
        api_batches.join(places, places.c.id == api_batches.c.id).outerjoin(
            api_files, api_files.c.id == api_batches.c.input_file_id
        )
    )
    query = query.where(places.c.place <= limit).order_by(newest_first)
    found = []
    for row in fetch_all(c, query):
        values = dict(row._mapping)  # noqa: SLF001  (SQLAlchemy's documented name)
        name = values.pop("file_name")
        found.append((ApiBatch(**values), name))
    return found


def is_any_due(c: Connection, now: datetime) -> bool:
    """Whether a batch is due."""
    return c.execute(select(api_batches.c.id).where(api_batches.c.due_at <= now).limit(1)).first() is not None


def claim_due(c: Connection, now: datetime, until: datetime) -> ApiBatch | None:
    """Take the batch that has been due longest, if any; no other server takes it before ``until``."""
    due = select(api_batches.c.id, api_batches.c.due_at).where(api_batches.c.due_at <= now)
    for row in c.execute(due.order_by(api_batches.c.due_at).limit(_CANDIDATES)).all():
        if move_due(c, row.id, row.due_at, until):
            return _one(c, api_batches.c.id == row.id)
    return None


def move_due(c: Connection, api_id: str, held: datetime, until: datetime | None) -> bool:
    """Set when a batch is due next, if it still is as this server knows it; returns whether it was."""
    which = (api_batches.c.id == api_id, api_batches.c.due_at == held)
    return c.execute(update(api_batches).where(*which).values(due_at=until)).rowcount > 0


def is_cancelling(c: Connection, api_id: str) -> bool:
    """Whether the batch's client asked for its cancel."""
    query = select(api_batches.c.id).where(api_batches.c.id == api_id, api_batches.c.cancelling_at.is_not(None))
    return c.execute(query).first() is not None


def ask_cancel(c: Connection, api_id: str, now: datetime) -> str | None:
    """Note that the client wants the batch cancelled; returns the batch of its jobs, which is then to be cancelled.

    None: its lines are not accepted yet. Whoever accepts them sees this note.
    """
    table = api_batches.c
    due_at = case((table.batch_id.is_(None), table.due_at), else_=now)
    asked = update(api_batches).where(table.id == api_id)
    asked = asked.values(cancelling_at=func.coalesce(table.cancelling_at, now), due_at=due_at)
    batch_id: str | None = c.execute(asked.returning(table.batch_id)).scalar_one_or_none()
    return batch_id


def accept(c: Connection, api_id: str, batch_id: str, now: datetime) -> None:
    """The lines are accepted: from here on the jobs say how far the batch is. It is due at once."""
    open_yet = (api_batches.c.id == api_id, api_batches.c.batch_id.is_(None))
    c.execute(update(api_batches).where(*open_yet).values(batch_id=batch_id, in_progress_at=now, due_at=now))


def close_failed(c: Connection, api_id: str, errors: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """The lines are not accepted."""
    _close(c, api_id, FAILED, now, errors=list(errors), failed_at=now)


def close_cancelled(c: Connection, api_id: str, now: datetime) -> None:
    """The batch was cancelled before its lines were accepted."""
    _close(c, api_id, CANCELLED, now, cancelled_at=now)


def close_expired(c: Connection, api_id: str, now: datetime) -> None:
    """The completion window ended before the lines were accepted."""
    _close(c, api_id, EXPIRED, now, expired_at=now)


def expire(c: Connection, api_id: str, now: datetime) -> None:
    """The completion window ended before the jobs."""
    c.execute(update(api_batches).where(api_batches.c.id == api_id).values(expired_at=now))


def reasoning_tokens(c: Connection, batch_id: str) -> int:
    """The tokens that the model thought in all answers of a batch. Reads every answer's row."""
    query = select(func.sum(results.c.reasoning_tokens)).join(jobs, jobs.c.id == results.c.job_id)
    return int(c.execute(query.where(jobs.c.batch_id == batch_id)).scalar_one() or 0)


def remove_closed(c: Connection, before: datetime) -> int:
    """Remove batches that ended without jobs, and were asked for before, with their notices; returns how many."""
    c.execute(delete(notices).where(notices.c.batch_id.is_(None), notices.c.created_at < before))
    which = (api_batches.c.batch_id.is_(None), before > _CLOSED_AT)
    return c.execute(delete(api_batches).where(*which)).rowcount


def _close(c: Connection, api_id: str, kind: str, now: datetime, **values: Any) -> None:  # noqa: ANN401  (values of columns)
    open_yet = (api_batches.c.id == api_id, api_batches.c.batch_id.is_(None))
    was_open = select(_CLOSED_AT.is_(None)).where(*open_yet).with_for_update()
    is_news = c.execute(was_open).scalar()
    c.execute(update(api_batches).where(*open_yet).values(due_at=None, **values))
    if is_news:
        add_notice(c, NewNotice(kind, {"id": api_id}), now)


def _one(c: Connection, *which: Any) -> ApiBatch:  # noqa: ANN401  (SQLAlchemy's conditions)
    rows = fetch_all(c, select(api_batches).where(*which))
    if not rows:
        raise NotFoundError("there is no such batch; GET /v1/batches lists them")
    return _batch(rows[0])


def _batch(row: Row[*tuple[Any, ...]]) -> ApiBatch:
    return ApiBatch(**row._mapping)  # noqa: SLF001  (SQLAlchemy's documented name)
