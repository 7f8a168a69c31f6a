"""What moves: the page's one stream of server-sent events. Each event is the markup of what has changed."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from helix_jobs.api.ids import known_id
from helix_jobs.api.page.batch import batch_view
from helix_jobs.api.page.batch_list import LISTED, newest_ids, rows_of
from helix_jobs.api.page.overview import overview_of
from helix_jobs.api.page.templates import render
from helix_jobs.api.page.viewer import Viewer, viewer_of
from helix_jobs.api.problems import Problem
from helix_jobs.errors import HelixError
from helix_jobs.storage.seen_batches import require_seen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from helix_jobs.api.context import Context
    from helix_jobs.client.snapshot import Snapshot

MOST_STREAMS: Final = 64
_PERIOD_SECONDS: Final = 1.0
# A comment, so that no proxy takes the connection for dead.
_SILENCE_SECONDS: Final = 15.0
_COMMENT: Final = b": here\n\n"
_RETRY_SECONDS: Final = 5
_GONE: Final = '<p class="notice wait">The batch was removed.</p>'

router = APIRouter(include_in_schema=False)


class Listeners:
    """How many streams are open. Used by the event loop's thread alone."""

    def __init__(self) -> None:
        self._open = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """A stream.

        Raises:
            Problem: Too many are open.
        """
        if self._open >= MOST_STREAMS:
            raise Problem(
                503,
                f"{MOST_STREAMS} pages are kept up to date already; reload this one to see what has changed",
                code="too_many_streams",
                retry_after=_RETRY_SECONDS,
            )
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


@router.get("/events")
async def show_events(request: Request, view: str = "overview", ids: str = "") -> StreamingResponse:
    """The markup of a view, whenever it has changed.

    Views are ``overview``, ``batches`` with the ids of their rows, ``newest`` with the same and batches that are newer,
    and ``batch`` with one id.
    """
    context: Context = request.app.state.context
    viewer = viewer_of(request)
    wanted = [known_id(one) for one in ids.split(",")[:LISTED] if one]
    if view not in ("overview", "batches", "newest", "batch") or (view == "batch" and len(wanted) != 1):
        raise Problem(404, "there is no such view", code="not_found")
    await run_in_threadpool(_require_seen, context, viewer, wanted)
    stream = _stream(request, context, lambda snapshot: _markup(view, snapshot, viewer, wanted), wanted)
    await anext(stream)  # a stream too many is refused before it begins
    return StreamingResponse(stream, media_type="text/event-stream")


async def _stream(
    request: Request, context: Context, markup_of: Callable[[Snapshot], str], ids: Sequence[str]
) -> AsyncIterator[bytes]:
    with context.listeners.one(), context.board.watching(*ids):
        yield b""
        sent, sent_at = "", time.monotonic()
        while not context.ending.has_begun and _may_look(request) and not await request.is_disconnected():
            try:
                markup = markup_of(await context.board.latest(*ids))
            except HelixError:
                markup = sent  # the database will come back, and the page is as it was
            if markup != sent:
                sent, sent_at = markup, time.monotonic()
                yield _event(markup)
            elif time.monotonic() - sent_at >= _SILENCE_SECONDS:
                sent_at = time.monotonic()
                yield _COMMENT
            await asyncio.sleep(_PERIOD_SECONDS)


def _markup(view: str, snapshot: Snapshot, viewer: Viewer, ids: Sequence[str]) -> str:
    if view == "batches":
        return render("_batch_table.html", batches=rows_of(snapshot, ids))
    if view == "newest":
        rows = rows_of(snapshot, newest_ids(snapshot, viewer, ids))
        return render("_batch_table.html", batches=rows) if rows else render("_no_batches.html", is_first=True)
    if view == "batch":
        found = snapshot.batches.get(ids[0])
        return _GONE if found is None else render("_batch.html", batch=batch_view(found))
    return render("_overview.html", overview=overview_of(snapshot, viewer))


def _may_look(request: Request) -> bool:
    """Whether who has opened the stream is still signed in: they may have signed out on another page."""
    context: Context = request.app.state.context
    return context.access.is_open or context.sessions.owner(request.headers.get("cookie")) is not None


def _event(markup: str) -> bytes:
    lines = "".join(f"data: {line}\n" for line in markup.split("\n"))
    return f"{lines}\n".encode()


def _require_seen(context: Context, viewer: Viewer, ids: Sequence[str]) -> None:
    with context.database.read() as c:
        for batch_id in ids:
            require_seen(c, batch_id, viewer.owner, sees_unowned=viewer.sees_unowned)
