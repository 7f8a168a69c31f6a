"""Routes of files: uploads, and the outputs of batches."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse

from helix_jobs.api.batch_duty import removal_at
from helix_jobs.api.batch_object import batch_object, batch_of_file
from helix_jobs.api.batch_output import output_pieces
from helix_jobs.api.described import UPLOAD_BODY, refusals
from helix_jobs.api.ids import known_id
from helix_jobs.api.listing import MAX_FILES, Order, list_object
from helix_jobs.api.problems import Problem
from helix_jobs.api.uploads import receive_upload
from helix_jobs.errors import NotFoundError
from helix_jobs.storage import api_batches, api_files
from helix_jobs.storage.api_records import ApiFile, Page
from helix_jobs.storage.status import batch_status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.api.context import Context
    from helix_jobs.storage.api_records import ApiBatch
    from helix_jobs.storage.records import BatchStatus

FILES_PATH: Final = "/v1/files"
_OUTPUT_PURPOSE: Final = "batch_output"
_CLIENT_GONE: Final = 499

router = APIRouter(tags=["files"])


@router.post(
    FILES_PATH,
    summary="Upload a file",
    responses=refusals(400, 401, 408, 413, 415, 429, 503),
    openapi_extra=UPLOAD_BODY,
)
async def upload_file(request: Request) -> JSONResponse:
    """Store a file of OpenAI Batch lines."""
    context: Context = request.app.state.context
    try:
        file = await receive_upload(request, context.database, context.body_room, context.settings.max_upload_mb)
    except ClientDisconnect:
        return JSONResponse({}, status_code=_CLIENT_GONE)  # nobody reads this
    return JSONResponse(_file_object(file))


@router.get(FILES_PATH, summary="List the files", responses=refusals(400, 401, 404, 503))
def list_files(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_FILES)] = MAX_FILES,
    order: Order = "desc",
    purpose: Annotated[str | None, Query(max_length=32, pattern=r"^[a-z_-]+$")] = None,
) -> dict[str, Any]:
    """The uploaded files. Those of a batch's output are named by the batch."""
    context: Context = request.app.state.context
    page = Page(limit=limit, after=None if after is None else known_id(after), newest_first=order == "desc")
    with context.database.read() as c:
        found = api_files.list_files(c, request.state.owner, page, purpose, datetime.now(UTC))
    return list_object([_file_object(file) for file in found], limit)


@router.get(FILES_PATH + "/{file_id}", summary="Look up a file", responses=refusals(401, 404, 503))
def get_file(request: Request, file_id: str) -> dict[str, Any]:
    """A file's name and size. The output of a batch is made and counted for it: that reads all of its answers."""
    context: Context = request.app.state.context
    if batch_of_file(file_id) is None:
        return _file_object(_uploaded(context, request.state.owner, file_id))
    batch, status, pieces = _output(context, request.state.owner, file_id)
    return {
        "id": file_id,
        "object": "file",
        "bytes": sum(len(piece) for piece in pieces),
        "created_at": int((status.finished_at or status.read_at).timestamp()),
        "filename": _output_name(file_id),
        "purpose": _OUTPUT_PURPOSE,
        "status": "processed",
        "status_details": None,
        "expires_at": _epoch(removal_at(batch, status, status.read_at)),
    }


@router.get(
    FILES_PATH + "/{file_id}/content",
    summary="Read a file",
    response_class=Response,
    responses=refusals(401, 404, 503),
)
async def file_content(request: Request, file_id: str) -> StreamingResponse:
    """The bytes of a file, as a stream. The output of a batch that runs has what is answered so far."""
    context: Context = request.app.state.context
    owner = request.state.owner
    if batch_of_file(file_id) is None:
        file = await run_in_threadpool(_uploaded, context, owner, file_id)
        return _stream(
            api_files.read_parts(context.database, file.id), file.filename, {"Content-Length": str(file.bytes)}
        )
    _, _, pieces = await run_in_threadpool(_output, context, owner, file_id)
    return _stream(pieces, _output_name(file_id), {})


@router.delete(FILES_PATH + "/{file_id}", summary="Remove a file", responses=refusals(401, 404, 409, 429, 503))
def delete_file(request: Request, file_id: str) -> dict[str, Any]:
    """Remove an uploaded file. Batches whose lines were accepted do not need theirs any more."""
    context: Context = request.app.state.context
    owner = request.state.owner
    if batch_of_file(file_id) is not None:
        _output(context, owner, file_id)
        raise Problem(
            409,
            "the file is made of the batch's answers, and goes with the batch; create batches with "
            "output_expires_after, or remove it with helix purge",
            code="conflict",
        )
    with context.database.write() as c:
        api_files.get_file(c, owner, known_id(file_id), datetime.now(UTC))
        if api_files.is_read(c, file_id):
            raise Problem(409, "a batch still reads the file; wait for it, or cancel it", code="conflict")
        api_files.hide_file(c, file_id)
    api_files.remove_file(context.database, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def _uploaded(context: Context, owner: str, file_id: str) -> ApiFile:
    with context.database.read() as c:
        return api_files.get_file(c, owner, known_id(file_id), datetime.now(UTC))


def _output(context: Context, owner: str, file_id: str) -> tuple[ApiBatch, BatchStatus, Iterator[bytes]]:
    """A batch, its status and the content of an output file of it.

    Raises:
        NotFoundError: The owner has no such batch, or it has no line of this kind.
    """
    api_id, errors = batch_of_file(file_id) or ("", False)
    with context.database.read() as c:
        try:
            batch = api_batches.get_api_batch(c, owner, known_id(api_id))
            status = batch_status(c, batch.batch_id or "")
        except NotFoundError:
            raise NotFoundError("there is no such file; its batch names the files of its output") from None
    named = batch_object(batch, status)["error_file_id" if errors else "output_file_id"]
    if named is None:
        raise NotFoundError("there is no such file yet; its batch names the files of its output")
    has_expired = batch.expired_at is not None
    return batch, status, output_pieces(context.database, status.id, errors=errors, has_expired=has_expired)


def _stream(pieces: Iterator[bytes], name: str, headers: dict[str, str]) -> StreamingResponse:
    """A download: no browser shows it as a page."""
    shown = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    return StreamingResponse(
        pieces,
        media_type="application/octet-stream",
        headers={"Content-Disposition": shown, "X-Content-Type-Options": "nosniff", **headers},
    )


def _output_name(file_id: str) -> str:
    api_id, errors = batch_of_file(file_id) or ("", False)
    return f"{api_id}_{'errors' if errors else 'output'}.jsonl"


def _file_object(file: ApiFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at.timestamp()),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
        "expires_at": _epoch(file.expires_at),
    }


def _epoch(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
