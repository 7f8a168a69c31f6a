"""Which batches somebody sees on the page: their own, and where so wished those without an owner.

A batch has an owner where it was asked for over HTTP (``api_batches``). What the command line submits has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, func, not_, or_, select, text, tuple_

from helix_jobs.errors import NotFoundError
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.readable import fetch_all
from helix_jobs.storage.schema import BATCH_IS_THERE, api_batches, api_files, batch_counters, batches, jobs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection

_IS_LISTED: Final = and_(BATCH_IS_THERE, not_(batches.c.interactive))
_STORED: Final = batch_counters.c.outcome == counters.STORED
_TOTALS: Final = (
    select(
        func.coalesce(func.sum(batch_counters.c.jobs).filter(_STORED), 0).label("stored"),
        func.coalesce(func.sum(batch_counters.c.jobs).filter(not_(_STORED)), 0).label("finished"),
        func.coalesce(func.sum(batch_counters.c.completion_tokens), 0).label("completion_tokens"),
    )
    .join_from(batch_counters, batches)
    .where(batches.c.total.is_not(None))
)


@dataclass(frozen=True, slots=True)
class Label:
    """What the page calls a batch.

    Attributes:
        owner: Whose it is; None for the command line's.
        api_id: Its id over HTTP; None without one.
        filename: The name of the uploaded file, as far as it is still known.
    """

    owner: str | None = None
    api_id: str | None = None
    filename: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page of the list of batches begins: right behind this batch."""

    created_at: datetime
    batch_id: str


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """What a batch was submitted with.

    Attributes:
        source: The name of its file.
        defaults: Sampling fields of lines that do not give them.
        metadata: What its submitter noted.
    """

    source: str | None
    defaults: Mapping[str, Any]
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class QueueTotals:
    """Sums over all batches that are there, interactive requests included; the pace is measured of them.

    Attributes:
        total: Jobs.
        finished: Those in a final state.
        completion_tokens: Tokens of their answers.
        tokens_per_second: Not known over all batches.
    """

    total: int
    finished: int
    completion_tokens: int
    tokens_per_second: None = None


def seen_ids(
    c: Connection, owner: str, *, sees_unowned: bool, before: Place | None = None, limit: int
) -> Sequence[Place]:
    """The newest batches that they see, older than ``before``; one more than ``limit`` if there are more."""
    query = (
        select(batches.c.created_at, batches.c.id)
        .outerjoin_from(batches, api_batches, api_batches.c.batch_id == batches.c.id)
        .where(_IS_LISTED, _seen_by(owner, sees_unowned=sees_unowned))
    )
    if before is not None:
        query = query.where(tuple_(batches.c.created_at, batches.c.id) < tuple_(before.created_at, before.batch_id))
    order = (batches.c.created_at.desc(), batches.c.id.desc())
    return [Place(row.created_at, row.id) for row in c.execute(query.order_by(*order).limit(limit + 1))]


def require_seen(c: Connection, batch_id: str, owner: str, *, sees_unowned: bool) -> Label:
    """The label of a batch that they see.

    Raises:
        NotFoundError: They see no such batch.
    """
    query = (
        select(batches.c.id)
        .outerjoin_from(batches, api_batches, api_batches.c.batch_id == batches.c.id)
        .where(batches.c.id == batch_id, _IS_LISTED, _seen_by(owner, sees_unowned=sees_unowned))
    )
    if c.execute(query).first() is None:
        raise NotFoundError("there is no such batch; the list of batches shows those that there are")
    return labels(c, [batch_id])[batch_id]


def labels(c: Connection, ids: Sequence[str]) -> Mapping[str, Label]:
    """Id -> label, for each of the ids."""
    query = (
        select(api_batches.c.batch_id, api_batches.c.id, api_batches.c.owner, api_files.c.filename)
        .outerjoin_from(api_batches, api_files, api_files.c.id == api_batches.c.input_file_id)
        .where(api_batches.c.batch_id.in_(ids))
    )
    found = {row.batch_id: Label(row.owner, row.id, row.filename) for row in c.execute(query)}
    return {batch_id: found.get(batch_id, Label()) for batch_id in ids}


def batch_settings(c: Connection, batch_id: str) -> BatchSettings:
    """What a batch was submitted with.

    Raises:
        NotFoundError: No such batch.
        UnreadableRowError: A value of the batch cannot be read.
    """
    query = select(batches.c.source, batches.c.defaults, batches.c.metadata).where(batches.c.id == batch_id)
    rows = fetch_all(c, query)
    if not rows:
        raise NotFoundError("there is no such batch; the list of batches shows those that there are")
    return BatchSettings(rows[0].source, rows[0].defaults, rows[0].metadata)


def current_ids(c: Connection, limit: int) -> Sequence[str]:
    """The newest batches of whomever, and those of which a job runs, newest first."""
    # Concatenation hides the other indexes: SQLite would walk every job of every batch by one of them.
    running = select(jobs.c.batch_id.concat("")).where(text("state = 'running'")).distinct()
    newest = select(batches.c.id).where(_IS_LISTED).order_by(batches.c.created_at.desc(), batches.c.id.desc())
    wanted = or_(batches.c.id.in_(running), batches.c.id.in_(newest.limit(limit)))
    query = select(batches.c.id).where(_IS_LISTED, wanted)
    return list(c.execute(query.order_by(batches.c.created_at.desc(), batches.c.id.desc())).scalars())


def queue_totals(c: Connection) -> QueueTotals:
    """Sums over all batches: from their counters, so at any size."""
    counters.flush(c)
    row = c.execute(_TOTALS).one()
    return QueueTotals(int(row.stored), int(row.finished), int(row.completion_tokens))


def _seen_by(owner: str, *, sees_unowned: bool) -> ColumnElement[bool]:
    own = api_batches.c.owner == owner
    return or_(own, api_batches.c.id.is_(None)) if sees_unowned else own
