"""Submit a file: by a form, which takes what is dropped on it. Lines may be of every form that the command takes."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response

from helix_jobs.api.batch_request import ANY_ENDPOINT
from helix_jobs.api.page.paths import SUBMIT
from helix_jobs.api.page.templates import page
from helix_jobs.api.uploads import max_file_bytes, receive_upload
from helix_jobs.storage.api_batches import create_api_batch
from helix_jobs.storage.api_records import NewApiBatch

if TYPE_CHECKING:
    from helix_jobs.api.context import Context
    from helix_jobs.storage.api_records import ApiFile

_SEE_OTHER: Final = 303
_CLIENT_GONE: Final = 499
# The table wants an end of the time to answer in; a person who submits on the page sets none.
_NO_END: Final = timedelta(days=36_500)
_NO_WINDOW: Final = "none"
# How long the file stays: its lines are jobs long before.
FILE_SECONDS: Final = 86_400

router = APIRouter(include_in_schema=False)


@router.get(SUBMIT)
def show_submit(request: Request) -> Response:
    """The form."""
    context: Context = request.app.state.context
    limit = max_file_bytes(context.settings.max_upload_mb)
    return page(request, "submit.html", limit=limit, file_seconds=FILE_SECONDS)


@router.post(SUBMIT)
async def submit(request: Request) -> Response:
    """Store the file as it comes, and have its lines checked in the background."""
    context: Context = request.app.state.context
    try:
        file = await receive_upload(request, context.database, context.body_room, context.settings.max_upload_mb)
    except ClientDisconnect:
        return Response(status_code=_CLIENT_GONE)  # nobody reads this
    new = _batch_of(file, datetime.now(UTC))
    await run_in_threadpool(context.database.transact, lambda c: create_api_batch(c, new))
    context.intake.wake()
    target = f"/batches/{new.id}"
    if "hx-request" in request.headers:
        return Response(headers={"HX-Redirect": target})
    return RedirectResponse(target, _SEE_OTHER)


def _batch_of(file: ApiFile, now: datetime) -> NewApiBatch:
    return NewApiBatch(
        id=f"batch_{secrets.token_hex(12)}",
        owner=file.owner,
        input_file_id=file.id,
        endpoint=ANY_ENDPOINT,
        completion_window=_NO_WINDOW,
        metadata={"name": file.filename},
        created_at=now,
        expires_at=now + _NO_END,
    )
