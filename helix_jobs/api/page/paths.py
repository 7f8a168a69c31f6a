"""Which paths are the page's. Everything else is the API's, and answers in JSON."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlsplit

_FOLDERS: Final = frozenset({"batches", "docs", "events", "sign-in", "sign-out", "static", "submit"})
# Whatever needs no session: it tells nothing about anybody's work.
_OPEN_FOLDERS: Final = frozenset({"sign-in", "static"})
SIGN_IN: Final = "/sign-in"
SUBMIT: Final = "/submit"
# The viewer of the HTTP interface.
INTERFACE: Final = "/docs"
# What moves comes from here, as server-sent events.
EVENTS: Final = "/events"
_MAX_NEXT_CHARS: Final = 2000


def is_page(path: str) -> bool:
    """Whether the page answers the path."""
    return path == "/" or _folder(path) in _FOLDERS


def needs_session(path: str) -> bool:
    """Whether somebody has to have signed in for the page's path."""
    return _folder(path) not in _OPEN_FOLDERS


def sign_in_for(target: str) -> str:
    """Where to sign in so as to come back to the target."""
    return SIGN_IN if target == "/" else f"{SIGN_IN}?next={quote(target, safe='')}"


def local_target(text: str | None) -> str:
    """Where to go after signing in: a path of the page. Anything else, such as another site's address, is the start."""
    if not text or len(text) > _MAX_NEXT_CHARS or not text.isprintable() or "\\" in text:
        return "/"
    try:
        parts = urlsplit(text)
    except ValueError:
        return "/"
    is_local = not parts.scheme and not parts.netloc and text.startswith("/") and not text.startswith("//")
    return (
        text if is_local and is_page(parts.path) and _folder(parts.path) in {"", "batches", "docs", "submit"} else "/"
    )


def _folder(path: str) -> str:
    return path.split("/", 2)[1] if path.startswith("/") else ""
