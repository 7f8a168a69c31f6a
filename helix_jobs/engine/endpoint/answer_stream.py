"""read_answer: one answer of the server, from the request to the last event, within limits."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import httpx2

from helix_jobs.engine.endpoint.faults import (
    ServerLostError,
    fault_in_stream,
    fault_of_status,
    fault_of_transport,
)
from helix_jobs.engine.endpoint.piece import UnreadableAnswerError, object_of
from helix_jobs.engine.endpoint.server import bounded_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from helix_jobs.engine.endpoint.dialect import Dialect
    from helix_jobs.engine.endpoint.piece import Piece

# An event with many tokens and their alternatives takes some tens of kilobytes. vLLM's first one repeats the prompt.
_MOST_EVENT_BYTES: Final = 1_000_000
_BYTES_A_PROMPT_TOKEN: Final = 12
_MOST_ERROR_BYTES: Final = 65_536
_DONE: Final = "[DONE]"
# Seconds to open a connection, and to send a part of a prompt.
CONNECT_SECONDS: Final = 10.0
WRITE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How long things may take, in seconds.

    Attributes:
        first: An answer's first piece; the server may keep the request in a queue of its own.
        next: Each further piece.
        look: Each part of the server's description of itself.

    Trade-off: shorter limits notice a server that hangs sooner, and lose the work of one that is only slow.
    """

    first: float = 1800.0
    next: float = 300.0
    look: float = 20.0


async def read_answer(
    client: httpx2.AsyncClient,
    dialect: Dialect,
    body: Mapping[str, Any],
    *,
    take: Callable[[Piece], bool],
    on_connect: Callable[[], None],
    on_sent: Callable[[], object],
    limits: StreamLimits,
) -> None:
    """Ask for one answer and hand on its pieces; the last ones say why it ends. A cancelled call closes the connection.

    Args:
        client: Has the server's address, and the key.
        dialect: How the server is asked.
        body: The JSON that asks; its ``prompt`` is a text or token ids.
        take: Is called with each piece. True: the answer has all it needs, and its connection is closed.
        on_connect: Is called when a connection has been opened for the answer: another process may stand behind the
            address than before.
        on_sent: Is called when the server has been sent the whole request.
        limits: The spans of time.

    Raises:
        ServerLostError: The connection broke, or the answer ended before its end, or does not go on.
        ServerBusyError: The server asks to be asked later.
        ServerRefusesError: The server refuses this worker.
        InvalidRequestError: The server refuses the request.
        UnreadableAnswerError: The answer is none that this kind of server makes.
    """
    loop = asyncio.get_running_loop()
    most_bytes = _MOST_EVENT_BYTES + _BYTES_A_PROMPT_TOKEN * len(body["prompt"])
    try:
        async with asyncio.timeout(limits.first) as limit:
            request = client.build_request(
                # The limit of reading is the one above: a server may be silent for long before an answer begins.
                "POST",
                dialect.path,
                json=body,
                timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS, write=WRITE_SECONDS),
                extensions={"trace": _trace(on_connect, on_sent)},
            )
            response = await client.send(request, stream=True)
            try:
                await _check_status(response)
                has_end = False
                async for event in httpx2.EventSource(response, max_event_size=most_bytes):
                    if event.data == _DONE:
                        continue  # what follows is the end of the body, with which the connection can be used again
                    piece = _piece(event.data, dialect)
                    if piece.is_progress:
                        limit.reschedule(loop.time() + limits.next)
                    has_all = take(piece)
                    has_end = has_end or has_all or piece.finish is not None
                    if has_all:
                        break
            finally:
                await response.aclose()
    except httpx2.SSEError as error:
        raise UnreadableAnswerError("the answer is no stream of events, or one event is too large") from error
    except (httpx2.HTTPError, TimeoutError) as error:
        raise fault_of_transport(error) from error
    if not has_end:
        raise ServerLostError("the server ended the answer before its end")


def _trace(on_connect: Callable[[], None], on_sent: Callable[[], object]) -> Callable[..., Awaitable[None]]:
    """What the client calls with each thing it does."""

    async def trace(event: str, _info: Mapping[str, Any]) -> None:
        if event.startswith("connection.connect_") and event.endswith(".complete"):
            on_connect()
        if event.endswith(".send_request_body.complete"):
            on_sent()

    return trace


async def _check_status(response: httpx2.Response) -> None:
    """Raise the error that a status other than 200 stands for."""
    if response.status_code != httpx2.codes.OK:
        said = await bounded_body(response, _MOST_ERROR_BYTES)
        raise fault_of_status(response.status_code, response.headers, said, datetime.now(UTC))


def _piece(data: str, dialect: Dialect) -> Piece:
    """The piece of one event.

    Raises:
        HelixError: The event reports an error, or is none of this kind of server's.
    """
    try:
        found = object_of(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise UnreadableAnswerError("an event of the answer is not JSON") from error
    if (fault := fault_in_stream(found)) is not None:
        raise fault
    return dialect.read(found)
