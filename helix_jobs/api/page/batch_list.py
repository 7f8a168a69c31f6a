"""The list of batches, page by page."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from helix_jobs.api.page.rows import BatchRow, batch_row
from helix_jobs.api.page.templates import page
from helix_jobs.api.page.viewer import viewer_of
from helix_jobs.errors import InputError
from helix_jobs.storage.seen_batches import Place, seen_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.responses import Response

    from helix_jobs.api.context import Context
    from helix_jobs.api.page.viewer import Viewer
    from helix_jobs.client.snapshot import Snapshot

LISTED: Final = 50
_SEPARATOR: Final = "~"

router = APIRouter(include_in_schema=False)


@router.get("/batches")
async def show_batches(request: Request, before: str | None = None) -> Response:
    """The batches that somebody sees, newest first."""
    context: Context = request.app.state.context
    place = None if before is None else read_place(before)
    found = await run_in_threadpool(_places, context, viewer_of(request), place)
    shown = found[:LISTED]
    ids = [one.batch_id for one in shown]
    snapshot = await context.board.latest(*ids)
    older = write_place(shown[-1]) if len(found) > len(shown) else None
    return page(request, "batches.html", batches=rows_of(snapshot, ids), ids=ids, older=older, is_first=place is None)


def rows_of(snapshot: Snapshot, ids: Sequence[str]) -> list[BatchRow]:
    """The rows of these batches, without those that were removed meanwhile."""
    return [batch_row(snapshot.batches[batch_id]) for batch_id in ids if batch_id in snapshot.batches]


def newest_ids(snapshot: Snapshot, viewer: Viewer, ids: Sequence[str]) -> list[str]:
    """The ids of the list's first page, from those that it had: batches that came since stand before them."""
    known = frozenset(ids)
    newer = []
    for batch_id, batch in snapshot.batches.items():
        if batch_id in known:
            break
        if viewer.sees(batch.label.owner):
            newer.append(batch_id)
    return [*newer, *ids][:LISTED]


def write_place(place: Place) -> str:
    """A place in the list, as a link carries it."""
    return f"{place.created_at.isoformat()}{_SEPARATOR}{place.batch_id}"


def read_place(text: str) -> Place:
    """The place that a link carries.

    Raises:
        InputError: It is none.
    """
    moment, _, batch_id = text[:120].partition(_SEPARATOR)
    try:
        created_at = datetime.fromisoformat(moment)
    except ValueError:
        created_at = None
    if created_at is None or created_at.tzinfo is None or not batch_id.isascii() or not batch_id.isprintable():
        raise InputError("before: is no place in the list of batches; begin with its first page")
    return Place(created_at, batch_id)


def _places(context: Context, viewer: Viewer, before: Place | None) -> Sequence[Place]:
    with context.database.read() as c:
        return seen_ids(c, viewer.owner, sees_unowned=viewer.sees_unowned, before=before, limit=LISTED)
