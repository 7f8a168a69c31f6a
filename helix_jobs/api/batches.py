"""Routes of batches."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from helix_jobs.api.batch_cancel import begin_api_cancel
from helix_jobs.api.batch_reading import read_batch, shown_batch
from helix_jobs.api.batch_request import read_batch_request
from helix_jobs.api.described import BATCH_BODY, refusals
from helix_jobs.api.generation import read_object
from helix_jobs.api.ids import known_id
from helix_jobs.api.listing import MAX_BATCHES, list_object
from helix_jobs.api.problems import Problem
from helix_jobs.api.request_memo import Again, answer_again
from helix_jobs.errors import NotFoundError
from helix_jobs.storage import api_batches, api_files
from helix_jobs.storage.api_records import Page
from helix_jobs.storage.status import batch_statuses

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from helix_jobs.api.context import Context
    from helix_jobs.storage.api_records import ApiBatch, NewApiBatch

_PATH: Final = "/v1/batches"
_ONE: Final = _PATH + "/{batch_id}"
_USUAL_LIMIT: Final = 20

router = APIRouter(tags=["batches"])


@router.post(
    _PATH,
    summary="Create a batch",
    responses=refusals(400, 401, 404, 408, 409, 413, 415, 429, 503),
    openapi_extra=BATCH_BODY,
)
async def create_batch(request: Request, idempotency_key: Annotated[str | None, Header()] = None) -> JSONResponse:
    """Create a batch of an uploaded file's lines. It is validated in the background, and then runs, or has failed."""
    context: Context = request.app.state.context
    body, _ = await read_object(request)
    new = read_batch_request(body, request.state.owner, idempotency_key, datetime.now(UTC))
    batch = await run_in_threadpool(context.database.transact, lambda c: _create(c, new))
    context.intake.wake()
    return JSONResponse(await run_in_threadpool(_shown, context, batch.id))


@router.get(_PATH, summary="List the batches", responses=refusals(400, 401, 404, 503))
def list_batches(
    request: Request, after: str | None = None, limit: Annotated[int, Query(ge=1, le=MAX_BATCHES)] = _USUAL_LIMIT
) -> dict[str, Any]:
    """The batches, newest first."""
    context: Context = request.app.state.context
    page = Page(limit=limit, after=None if after is None else known_id(after))
    with context.database.read() as c:
        found = api_batches.list_api_batches(c, request.state.owner, page)
        statuses = batch_statuses(c, [batch.batch_id for batch in found if batch.batch_id is not None])
    return list_object([shown_batch(batch, statuses, context.thought) for batch in found], limit)


@router.get(_ONE, summary="Look up a batch", response_model=dict[str, Any], responses=refusals(401, 404, 503))
async def get_batch(request: Request, batch_id: str) -> Response:
    """How far a batch is, and the ids of its output files."""
    context: Context = request.app.state.context
    owner, api_id = request.state.owner, known_id(batch_id)
    is_shared = "no-cache" not in request.headers.get("cache-control", "").lower()
    body = await context.readings.body(owner, api_id, anew=not is_shared)
    if is_shared:
        answer_again(request.scope["state"], Again(_ONE, lambda: context.readings.at_hand(owner, api_id)))
    return Response(body, media_type="application/json")


@router.post(_ONE + "/cancel", summary="Cancel a batch", responses=refusals(401, 404, 409, 429, 503))
def cancel_batch(request: Request, batch_id: str) -> dict[str, Any]:
    """Cancel what is not answered yet. No further request of the batch begins; answers that there are stay."""
    context: Context = request.app.state.context
    now = datetime.now(UTC)
    with context.database.read() as c:
        batch = api_batches.get_api_batch(c, request.state.owner, known_id(batch_id))
    state = _shown(context, batch.id)["status"]
    if state in ("failed", "completed", "expired", "finalizing"):
        raise Problem(409, f"the batch is {state}, and cannot be cancelled any more", code="conflict")
    if state in ("validating", "in_progress"):
        context.database.transact(lambda c: begin_api_cancel(c, batch.id, now))
        context.intake.wake()
    return _shown(context, batch.id)


def _create(c: Connection, new: NewApiBatch) -> ApiBatch:
    batch = api_batches.create_api_batch(c, new)
    if batch.id == new.id:  # the file of one that was there before may have gone
        try:
            api_files.get_file(c, new.owner, new.input_file_id, new.created_at)
        except NotFoundError:
            raise Problem(
                404, "input_file_id: there is no such file; upload it first", param="input_file_id", code="not_found"
            ) from None
    return batch


def _shown(context: Context, api_id: str) -> dict[str, Any]:
    _, shown = read_batch(context.database, context.thought, api_id)
    return shown
