"""Guard: looks at each request before any route does: host, origin, key, and the size and pace of its body."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from starlette.requests import Request

from helix_jobs.api.access import EVERYBODY, Access, is_loopback
from helix_jobs.api.page.paths import is_page, needs_session
from helix_jobs.api.page.refusals import refusal_page
from helix_jobs.api.problems import Problem
from helix_jobs.wording import data_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from helix_jobs.api.page.sessions import Sessions

# A line of a batch file may have as much, see ``raw_lines``; a little is for the rest of the request.
MAX_BODY_BYTES: Final = 5 * 1024 * 1024
# How long a client may let its body wait. A client that sends nothing so long has gone, or means harm.
BODY_SECONDS: Final = 30.0
# After this head start a body must have come at this pace in the mean, in bytes a second. Trade-off: a client behind a
# slower line is refused; without a bound one that sends a byte now and then would keep its place for ever.
BODY_PACE: Final = 8192
HEAD_START_SECONDS: Final = 30.0
# Whatever has no key: it tells nothing about anybody's work.
PUBLIC: Final = frozenset({"/health", "/ready"})
# What changes nothing, and so may be asked by a link on whatever page.
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """ASGI middleware. ``scope["state"]["owner"]`` is the owner of the request's key.

    Args:
        app: The application behind it.
        access: The keys.
        sessions: Who has signed in to the page.
        limit_of: Path -> the most bytes of a body there.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        sessions: Sessions,
        limit_of: Callable[[str], int] = lambda _path: MAX_BODY_BYTES,
    ) -> None:
        self._app = app
        self._access = access
        self._sessions = sessions
        self._limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass; answer the rest."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            scope.setdefault("state", {})["owner"] = self._checked_owner(scope["method"], scope["path"], headers)
            limit = self._limit_of(scope["path"])
            _check_length(headers.get("content-length"), limit)
        except Problem as problem:
            await refuse(scope, send, problem)
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
            await refuse(scope, send, problem)

    def _checked_owner(self, method: str, path: str, headers: dict[str, str]) -> str:
        if self._access.is_open:
            # Without keys, a page in this machine's browser must not ask in its user's name: neither by another host's
            # name for this address (DNS rebinding) nor from another site.
            host = _host_of(f"//{headers.get('host', '')}")
            if not is_loopback(host):
                raise Problem(403, f"the host {host[:80]!r} is not this machine's; ask for localhost", code="host")
            if "origin" in headers and not _is_own_origin(headers):
                raise Problem(403, "the request comes from a page of another site; set HELIX_API_KEYS", code="origin")
        if is_page(path):
            return self._page_owner(method, path, headers)
        owner = self._access.owner(headers.get("authorization"))
        if owner is None:
            if path in PUBLIC:
                return ""
            raise Problem(
                401, "the API key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key"
            )
        return owner

    def _page_owner(self, method: str, path: str, headers: dict[str, str]) -> str:
        """Whose session the request is of. The page takes no key of a header, and the API no cookie.

        So another site, in whose name a browser would send the cookie, can ask the API nothing. What changes something
        on the page has to come from the page itself: browsers send the origin with every form.
        """
        if method not in SAFE_METHODS and not _is_own_origin(headers):
            raise Problem(403, "the request does not come from this page; open the page and try again", code="origin")
        owner = EVERYBODY if self._access.is_open else self._sessions.owner(headers.get("cookie"))
        if owner is None and needs_session(path):
            raise Problem(401, "nobody is signed in; sign in with an API key", code="signed_out")
        return owner or ""


class _Body:
    """A request's body, read within its limits."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._bytes = 0
        self._ended = False
        # Seconds of waiting for the client. A database that is slow to store an upload is not its fault.
        self._waited = 0.0

    async def receive(self) -> Message:
        """The next part.

        Raises:
            Problem: The body is too large or too slow, or the client stopped in the middle of it.
        """
        if self._ended:  # what comes now is the client's leaving, which may come late
            return await self._receive()
        asked = time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), BODY_SECONDS)
        except TimeoutError as error:
            raise Problem(408, f"the body stopped for {BODY_SECONDS:g} s; send it whole", code="timeout") from error
        self._waited += time.monotonic() - asked
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._ended = not message.get("more_body", False)
            if self._bytes > self._limit:
                raise _too_large(self._limit)
            if not self._ended and self._waited > HEAD_START_SECONDS + self._bytes / BODY_PACE:
                raise Problem(
                    408, f"the body comes at less than {BODY_PACE:,} bytes a second; send it whole", code="timeout"
                )
        return message


def _is_own_origin(headers: dict[str, str]) -> bool:
    """Whether the request comes from a page of the host that it asks. A proxy may have taken the TLS off it."""
    return headers.get("origin", "").partition("://")[2] == headers.get("host")


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


async def refuse(scope: Scope, send: Send, problem: Problem) -> None:
    """Answer with a refusal: a page's where a page was asked for."""
    if is_page(scope["path"]):
        answer = refusal_page(Request(scope), problem)
        await answer(scope, _no_body, send)
        return
    body = json.dumps(problem.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def _no_body() -> Message:
    """A refusal reads nothing more."""
    return {"type": "http.disconnect"}
