"""What a person does with a batch: cancel, retry, pause, resume.

The first two may change a million rows, in steps. A person waits a moment for them; then the page shows how far they
are. Where the server dies in the middle, a worker completes a cancel, and a second click a retry.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from helix_jobs.api.batch_cancel import begin_api_cancel
from helix_jobs.api.ids import known_id
from helix_jobs.api.page.unaccepted import API_PREFIX, own_api_batch
from helix_jobs.api.page.viewer import Viewer, viewer_of
from helix_jobs.errors import HelixError
from helix_jobs.storage import changes_in_steps, pausing
from helix_jobs.storage.seen_batches import require_seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response

    from helix_jobs.api.context import Context
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.seen_batches import Label

logger = logging.getLogger(__name__)

_SEE_OTHER: Final = 303
_MOMENT_SECONDS: Final = 2.0
# Work that goes on after its answer. The event loop alone would let it be forgotten.
_going_on: Final[set[asyncio.Future[int]]] = set()

router = APIRouter(include_in_schema=False)


@router.post("/batches/{batch_id}/cancel")
async def cancel(request: Request, batch_id: str) -> Response:
    """Let nothing of a batch begin any more; answers that there are stay."""
    context: Context = request.app.state.context
    viewer = viewer_of(request)
    if known_id(batch_id).startswith(API_PREFIX):
        api_id: str | None = (await run_in_threadpool(own_api_batch, context, viewer, batch_id)).id
    else:
        api_id = (await run_in_threadpool(_label, context, viewer, batch_id)).api_id
    if api_id is not None:
        now, asked = datetime.now(UTC), api_id
        await run_in_threadpool(context.database.transact, lambda c: begin_api_cancel(c, asked, now))
        context.intake.wake()
    else:
        await _for_a_moment(changes_in_steps.cancel_batch, context.database, batch_id)
    return RedirectResponse(f"/batches/{batch_id}", _SEE_OTHER)


@router.post("/batches/{batch_id}/retry")
async def retry(request: Request, batch_id: str) -> Response:
    """Have failed and cancelled jobs tried again."""
    context: Context = request.app.state.context
    await run_in_threadpool(_label, context, viewer_of(request), known_id(batch_id))
    await _for_a_moment(changes_in_steps.retry_batch, context.database, batch_id)
    return RedirectResponse(f"/batches/{batch_id}", _SEE_OTHER)


@router.post("/batches/{batch_id}/pause")
def pause(request: Request, batch_id: str) -> Response:
    """Let no further job of a batch begin."""
    context: Context = request.app.state.context
    _label(context, viewer_of(request), known_id(batch_id))
    context.database.transact(lambda c: pausing.pause_batch(c, batch_id, now=datetime.now(UTC)))
    return RedirectResponse(f"/batches/{batch_id}", _SEE_OTHER)


@router.post("/batches/{batch_id}/resume")
def resume(request: Request, batch_id: str) -> Response:
    """Let the jobs of a paused batch begin again."""
    context: Context = request.app.state.context
    _label(context, viewer_of(request), known_id(batch_id))
    context.database.transact(lambda c: pausing.resume_batch(c, batch_id))
    return RedirectResponse(f"/batches/{batch_id}", _SEE_OTHER)


async def _for_a_moment(change: Callable[[Database, str], int], database: Database, batch_id: str) -> None:
    """Wait for a change to end, but not long: it goes on by itself."""
    work = asyncio.ensure_future(run_in_threadpool(change, database, batch_id))
    done, _ = await asyncio.wait({work}, timeout=_MOMENT_SECONDS)
    if done:
        work.result()  # raises what it raised
        return
    _going_on.add(work)
    work.add_done_callback(_ended)


def _ended(work: asyncio.Future[int]) -> None:
    _going_on.discard(work)
    error = None if work.cancelled() else work.exception()
    if isinstance(error, HelixError):
        logger.warning("a change of a batch stopped in the middle: %s; ask for it again", error)
    elif error is not None:
        logger.error("a change of a batch stopped in the middle", exc_info=error)


def _label(context: Context, viewer: Viewer, batch_id: str) -> Label:
    with context.database.read() as c:
        return require_seen(c, batch_id, viewer.owner, sees_unowned=viewer.sees_unowned)
