"""Routes that generate: chat completions and completions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Header, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from helix_jobs.api.described import GENERATION_BODIES, refusals
from helix_jobs.api.interactive import Call
from helix_jobs.api.problems import Problem
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.forms import CHAT_ENDPOINT, COMPLETION_ENDPOINT
from helix_jobs.intake.strict_json import decode

if TYPE_CHECKING:
    from helix_jobs.api.context import Context

# How often one looks whether the client is still there.
_LOOK_SECONDS: Final = 0.25

router = APIRouter(tags=["generation"])


@router.post(
    CHAT_ENDPOINT,
    summary="Answer a conversation",
    responses=refusals(400, 401, 408, 409, 413, 415, 422, 429, 500, 503),
    openapi_extra=GENERATION_BODIES[CHAT_ENDPOINT],
)
async def chat_completions(request: Request, idempotency_key: Annotated[str | None, Header()] = None) -> JSONResponse:
    """Answer a conversation, with every field that a line of a batch may have."""
    return await _generate(request, CHAT_ENDPOINT, idempotency_key)


@router.post(
    COMPLETION_ENDPOINT,
    summary="Go on with a text",
    responses=refusals(400, 401, 408, 409, 413, 415, 422, 429, 500, 503),
    openapi_extra=GENERATION_BODIES[COMPLETION_ENDPOINT],
)
async def completions(request: Request, idempotency_key: Annotated[str | None, Header()] = None) -> JSONResponse:
    """Go on with a text, with every field that a line of a batch may have."""
    return await _generate(request, COMPLETION_ENDPOINT, idempotency_key)


async def read_object(request: Request) -> tuple[dict[str, Any], int]:
    """The request's JSON object, and its size in bytes.

    Raises:
        Problem: The body is not JSON by its header, or not an object.
        InvalidFieldError: The body is not strict JSON.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "the body is not JSON by its Content-Type; send application/json", code="content_type")
    data = await request.body()
    try:
        values = decode(data, first=True)
    except InvalidFieldError as error:
        raise Problem(400, f"the body {error.reason}; {_remedy(error)}", code="invalid_request") from error
    if not isinstance(values, dict):
        raise Problem(400, "the body is not an object; send one JSON object", code="invalid_request")
    return values, len(data)


async def _generate(request: Request, endpoint: str, idempotency_key: str | None) -> JSONResponse:
    context: Context = request.app.state.context
    body, size = await read_object(request)
    call = Call(endpoint, body, size, request.state.owner, idempotency_key)
    with context.open_requests.one(call.owner):
        await run_in_threadpool(context.workers.require_one)
        job_id = await run_in_threadpool(context.interactive.store, call)
        if not await _ended(request, context, job_id, may_cancel=idempotency_key is None):
            return JSONResponse({}, status_code=499)  # the client has gone, and nobody reads this
        return JSONResponse(
            await run_in_threadpool(context.interactive.answer, job_id), headers={"X-Request-Id": f"req_{job_id}"}
        )


async def _ended(request: Request, context: Context, job_id: int, *, may_cancel: bool) -> bool:
    """Wait until the job has ended; False if its client has gone before.

    The job of a client that has gone is cancelled. One with an idempotency key goes on: its client may come back.
    """
    ended = context.watch.watch(job_id)
    try:
        while True:
            try:
                await asyncio.wait_for(ended.wait(), _LOOK_SECONDS)
            except TimeoutError:
                if await request.is_disconnected():
                    if may_cancel:
                        await run_in_threadpool(context.interactive.cancel, job_id)
                    return False
            else:
                return True
    finally:
        context.watch.forget(job_id, ended)


def _remedy(error: InvalidFieldError) -> str:
    """The remedy, without what concerns files of lines."""
    return "send one JSON object" if "line" in error.remedy or "file" in error.remedy else error.remedy
