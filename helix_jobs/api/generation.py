"""Routes that generate: chat completions and completions."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Header, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from helix_jobs.api.described import GENERATION_BODIES, refusals
from helix_jobs.api.interactive import Call
from helix_jobs.api.problems import Problem
from helix_jobs.api.prompts import each_prompt, one_answer
from helix_jobs.api.storing import stored
from helix_jobs.api.streaming import stream_answer
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.forms import CHAT_ENDPOINT, COMPLETION_ENDPOINT
from helix_jobs.intake.line_faults import kind
from helix_jobs.intake.strict_json import decode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Scope, Send

    from helix_jobs.api.context import Context

# How often one looks whether the client is still there.
_LOOK_SECONDS: Final = 0.25
# A proxy must neither keep nor collect the events.
_STREAM_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

_REFUSALS: Final = (400, 401, 403, 408, 409, 410, 413, 415, 422, 429, 500, 502, 503, 504, 507)

router = APIRouter(tags=["generation"])


@router.post(
    CHAT_ENDPOINT,
    summary="Answer a conversation",
    responses=refusals(*_REFUSALS),
    openapi_extra=GENERATION_BODIES[CHAT_ENDPOINT],
    response_class=JSONResponse,
)
async def chat_completions(request: Request, idempotency_key: Annotated[str | None, Header()] = None) -> Response:
    """Answer a conversation, with every field that a line of a batch may have."""
    return await _generate(request, CHAT_ENDPOINT, idempotency_key)


@router.post(
    COMPLETION_ENDPOINT,
    summary="Go on with a text",
    responses=refusals(*_REFUSALS),
    openapi_extra=GENERATION_BODIES[COMPLETION_ENDPOINT],
    response_class=JSONResponse,
)
async def completions(request: Request, idempotency_key: Annotated[str | None, Header()] = None) -> Response:
    """Go on with a text, with every field that a line of a batch may have."""
    return await _generate(request, COMPLETION_ENDPOINT, idempotency_key)


async def read_object(request: Request) -> tuple[dict[str, Any], int]:
    """The request's JSON object, and its size in bytes.

    Raises:
        Problem: The body is not JSON by its header, or not an object, or there is no room for it now.
        InvalidFieldError: The body is not strict JSON.
    """
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json":
        raise Problem(415, "the body is not JSON by its Content-Type; send application/json", code="content_type")
    context: Context = request.app.state.context
    data = bytearray()
    with context.body_room.place() as place:
        async for piece in request.stream():
            data += piece
            place.hold(len(data))
    try:
        values = decode(bytes(data), first=True)
    except InvalidFieldError as error:
        raise Problem(400, f"the body {error.reason}; {_remedy(error)}", code="invalid_request") from error
    if not isinstance(values, dict):
        raise Problem(400, "the body is not an object; send one JSON object", code="invalid_request")
    return values, len(data)


async def _generate(request: Request, endpoint: str, idempotency_key: str | None) -> Response:
    context: Context = request.app.state.context
    body, size = await read_object(request)
    is_streamed, has_usage = body.get("stream") is True, _has_usage(body)
    if is_streamed:
        del body["stream"]
    call = Call(endpoint, body, size, request.state.owner, idempotency_key)
    calls = each_prompt(call, is_streamed=is_streamed)
    if is_streamed:
        events = stream_answer(request, context, call, has_usage=has_usage)
        # A request that fails before its answer begins is refused with a status of its own.
        first = await anext(events, b"")
        return _EventStream(first, events)
    if len(calls) > 1:  # all are checked before the first is stored
        await run_in_threadpool(lambda: [context.interactive.checked(one) for one in calls])
        if idempotency_key is not None:  # where the key names another request, none of the others is stored
            await run_in_threadpool(context.interactive.store, calls[0])
    answers = [asyncio.ensure_future(_answered(request, context, one)) for one in calls]
    try:
        bodies = await asyncio.gather(*answers)
    finally:
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*answers, return_exceptions=True)
    found = [body for body in bodies if body is not None]
    if len(found) < len(calls):
        return JSONResponse({}, status_code=499)  # the client has gone, and nobody reads this
    body = one_answer(found)
    return JSONResponse(body, headers={"X-Request-Id": f"req_{body['id'].rpartition('-')[2]}"})


async def _answered(request: Request, context: Context, call: Call) -> dict[str, Any] | None:
    """Have a request answered; None if its client has gone before.

    Raises:
        Problem: It fails, or the server stops.
        HelixError: It is refused, or cannot be stored.
    """
    with context.open_requests.one(call.owner):
        await run_in_threadpool(context.workers.require_one)
        job_id = await stored(context, call)
        if not await _ended(request, context, job_id, may_cancel=call.idempotency_key is None):
            return None
        return await run_in_threadpool(context.interactive.answer, job_id)


class _EventStream(StreamingResponse):
    """The events of one answer. However the response ends, the events' generator is closed with it."""

    def __init__(self, first: bytes, events: AsyncGenerator[bytes]) -> None:
        super().__init__(_all_of(first, events), media_type="text/event-stream", headers=_STREAM_HEADERS)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _all_of(first: bytes, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for piece in events:
        yield piece


def _has_usage(body: dict[str, Any]) -> bool:
    """Whether the client wants the number of tokens behind a streamed answer.

    Raises:
        Problem: ``stream_options`` is not an object, or its ``include_usage`` neither true nor false.
    """
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict) or body.get("stream") is not True:
        reason = "belongs to a streamed answer" if isinstance(options, dict) else "is not an object"
        raise Problem(400, f"stream_options: {reason}; leave it out", param="stream_options", code="invalid_request")
    wanted = options.get("include_usage")
    if wanted is not None and not isinstance(wanted, bool):
        field = "stream_options.include_usage"
        raise Problem(400, f"{field}: is {kind(wanted)}; give true or false", param=field, code="invalid_request")
    return wanted is True


async def _ended(request: Request, context: Context, job_id: int, *, may_cancel: bool) -> bool:
    """Wait until the job has ended; False if its client has gone before.

    Nobody waits for the job then, and it is cancelled. One with an idempotency key goes on: its client may come back.

    Raises:
        Problem: The server stops.
    """
    ended = context.watch.watch(job_id)
    try:
        while True:
            try:
                await asyncio.wait_for(ended.wait(), _LOOK_SECONDS)
            except TimeoutError:
                if await request.is_disconnected():
                    return False
                context.ending.check()
            else:
                return True
    finally:
        context.watch.forget(job_id, ended)
        if may_cancel and not ended.is_set():
            # Not awaited: this task may be in the middle of being cancelled.
            asyncio.get_running_loop().run_in_executor(None, context.interactive.cancel, job_id)


def _remedy(error: InvalidFieldError) -> str:
    """The remedy, without what concerns files of lines."""
    return "send one JSON object" if "line" in error.remedy or "file" in error.remedy else error.remedy
