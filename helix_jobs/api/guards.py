"""Guard: looks at each request before any route does: host, origin, key, and the size and pace of its body."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from helix_jobs.api.access import Access, is_loopback
from helix_jobs.api.problems import Problem
from helix_jobs.wording import data_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A line of a batch file may have as much, see ``raw_lines``; a little is for the rest of the request.
MAX_BODY_BYTES: Final = 5 * 1024 * 1024
# How long a client may let its body wait. A client that sends nothing so long has gone, or means harm.
BODY_SECONDS: Final = 30.0
# Whatever has no key: it tells nothing about anybody's work.
_PUBLIC: Final = frozenset({"/health", "/ready"})


class Guard:
    """ASGI middleware. ``scope["state"]["owner"]`` is the owner of the request's key.

    Args:
        app: The application behind it.
        access: The keys.
        limit_of: Path -> the most bytes of a body there.
    """

    def __init__(
        self, app: ASGIApp, access: Access, limit_of: Callable[[str], int] = lambda _path: MAX_BODY_BYTES
    ) -> None:
        self._app = app
        self._access = access
        self._limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass; answer the rest."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            scope.setdefault("state", {})["owner"] = self._checked_owner(scope["path"], headers)
            limit = self._limit_of(scope["path"])
            _check_length(headers.get("content-length"), limit)
        except Problem as problem:
            await refuse(send, problem)
            return
        body = _Body(receive, limit)
        begun = False

        async def watched_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, body.receive, watched_send)
        except Problem as problem:
            if begun:
                raise
            await refuse(send, problem)

    def _checked_owner(self, path: str, headers: dict[str, str]) -> str:
        if self._access.is_open:
            # Without keys, a page in this machine's browser must not ask in its user's name: neither by another host's
            # name for this address (DNS rebinding) nor from another site.
            host = _host_of(f"//{headers.get('host', '')}")
            if not is_loopback(host):
                raise Problem(403, f"the host {host[:80]!r} is not this machine's; ask for localhost", code="host")
            origin = headers.get("origin")
            if origin is not None and origin.partition("://")[2] != headers.get("host"):
                raise Problem(403, "the request comes from a page of another site; set HELIX_API_KEYS", code="origin")
        owner = self._access.owner(headers.get("authorization"))
        if owner is None:
            if path in _PUBLIC:
                return ""
            raise Problem(
                401, "the API key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key"
            )
        return owner


class _Body:
    """A request's body, read within its limits."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._bytes = 0
        self._ended = False

    async def receive(self) -> Message:
        """The next part.

        Raises:
            Problem: The body is too large, or the client stopped in the middle of it.
        """
        if self._ended:  # what comes now is the client's leaving, which may come late
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), BODY_SECONDS)
        except TimeoutError as error:
            raise Problem(408, f"the body stopped for {BODY_SECONDS:g} s; send it whole", code="timeout") from error
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._ended = not message.get("more_body", False)
            if self._bytes > self._limit:
                raise _too_large(self._limit)
        return message


def _host_of(url: str) -> str:
    """The host without its port; nothing where the text names none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # a bracket without its other
        return ""


def _check_length(text: str | None, limit: int) -> None:
    if text is not None and text.isdecimal() and int(text[:20]) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> Problem:
    return Problem(413, f"the request is larger than {data_size(limit)}; send a smaller one", code="too_large")


async def refuse(send: Send, problem: Problem) -> None:
    """Answer with a refusal."""
    body = json.dumps(problem.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
