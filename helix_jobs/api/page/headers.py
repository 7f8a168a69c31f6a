"""PageHeaders: what browsers are told beside each answer of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.api.page.paths import is_page

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Own files alone, nothing inline: markup that came into a page in spite of all could run nothing and send nothing.
_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    b"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS: Final = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    # Not "no-referrer": browsers then hide the origin of the page's own forms, which the guard checks.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# Answers of others must not stay in a browser's cache. Files are asked for again, and most often are unchanged.
_NO_STORE: Final = (b"cache-control", b"no-store")
_ASK_AGAIN: Final = (b"cache-control", b"no-cache")


class PageHeaders:
    """ASGI middleware that adds headers to every answer of the page.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with the headers."""
        if scope["type"] != "http" or not is_page(scope["path"]):
            await self._app(scope, receive, send)
            return
        caching = _ASK_AGAIN if scope["path"].startswith("/static/") else _NO_STORE

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS, caching]
            await send(message)

        await self._app(scope, receive, send_with_headers)
