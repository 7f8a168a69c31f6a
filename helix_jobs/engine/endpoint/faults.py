"""What a server's refusals and silences mean: for one request, for all of them, or for a while."""

from __future__ import annotations

import json
import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

import httpx2

from helix_jobs.errors import HelixError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

_LONGEST_QUOTE: Final = 300
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e\u00a0-\u02ff\u0370-\u1fff\u3000-\ud7ff]+")
# The longest that a server may ask to be left alone.
LONGEST_PAUSE: Final = 300.0
_LIMIT: Final = 429
_BUSY: Final = (_LIMIT, 503)
_KEY: Final = (401, 403)


class ServerLostError(HelixError):
    """The server ended an answer before its end, or does not answer."""


class ServerBusyError(HelixError):
    """The server asks to be asked later.

    Args:
        message: What it says.
        seconds: How much later, if it says so.
        is_limit: Whether it limits how often it is asked; otherwise it is not ready, as after a death.
    """

    def __init__(self, message: str, seconds: float | None = None, *, is_limit: bool = False) -> None:
        super().__init__(message)
        self.seconds = seconds
        self.is_limit = is_limit


class ServerRefusesError(HelixError):
    """The server answers, but not this worker: its key, its path or its model is wrong, or the model has changed."""


def fault_of_status(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> HelixError:
    """The error that an HTTP answer other than 200 stands for.

    Args:
        status: Its status.
        headers: Its headers, by names in lower case.
        body: The beginning of its body.
        now: To reckon a ``Retry-After`` that is a date.
    """
    words = words_of(body)
    said = f": {words}" if words else ""
    if status in _KEY:
        return ServerRefusesError(f"the server refuses the key (HTTP {status}); set HELIX_ENDPOINT_KEY to one it takes")
    if status == httpx2.codes.NOT_FOUND:
        return ServerRefusesError(
            f"the server does not know the model or the path (HTTP 404){said}; correct HELIX_ENDPOINT_MODEL and "
            "HELIX_ENDPOINT_URL"
        )
    if status in _BUSY:
        seconds = _pause(headers.get("retry-after"), now)
        return ServerBusyError(f"the server is busy (HTTP {status}){said}", seconds, is_limit=status == _LIMIT)
    if httpx2.codes.is_redirect(status):
        return ServerRefusesError(
            f"the server sends requests elsewhere (HTTP {status}), which Helix does not follow; set HELIX_ENDPOINT_URL "
            "to the final address"
        )
    if httpx2.codes.is_client_error(status) and status != httpx2.codes.REQUEST_TIMEOUT:
        return InvalidRequestError(f"the server refuses the request (HTTP {status}){said}")
    return ServerLostError(f"the server failed (HTTP {status}){said}")


def fault_in_stream(event: Mapping[str, Any]) -> HelixError | None:
    """The error that an event of a stream reports; None for an ordinary event."""
    found = event.get("error")
    if found is None:
        return None
    words = _clean(_message(event))
    code = found.get("code") if isinstance(found, dict) else None
    if code == _LIMIT:
        return ServerBusyError(f"the server is busy: {words}", is_limit=True)
    if isinstance(code, int) and httpx2.codes.is_client_error(code):
        return InvalidRequestError(f"the server refuses the request: {words}")
    return ServerLostError(f"the server failed in mid-answer: {words}" if words else "the server failed in mid-answer")


def fault_of_transport(error: Exception) -> ServerLostError:
    """The error that a broken connection stands for. The library's text is left out: it may quote an address."""
    if isinstance(error, httpx2.ConnectTimeout):
        return ServerLostError("the server takes no connection in time")
    if isinstance(error, httpx2.ConnectError):
        return ServerLostError("the server takes no connection")
    if isinstance(error, httpx2.TimeoutException | TimeoutError):
        return ServerLostError("the server has fallen silent")
    return ServerLostError(f"the connection to the server broke ({type(error).__name__})")


def words_of(body: bytes) -> str:
    """The server's own words in the body of an error, in one printable line of bounded length."""
    text = body.decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return _clean(text) if not text.lstrip().startswith("<") else ""  # a page of a proxy says nothing
    return _clean(_message(found))


def _message(found: object) -> str:
    """The message in one of the forms that servers give it."""
    for name in ("error", "detail", "message"):
        if isinstance(found, dict) and name in found:
            inner = found[name]
            if isinstance(inner, list) and inner:
                inner = inner[0]
            if isinstance(inner, dict):
                inner = inner.get("message", inner.get("msg", ""))
            return inner if isinstance(inner, str) else ""
    return found if isinstance(found, str) else ""


def _clean(text: str) -> str:
    line = " ".join(_UNPRINTABLE.sub(" ", text).split())
    return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]}..."


def _pause(value: str | None, now: datetime) -> float | None:
    """Seconds of a ``Retry-After``, which is a number or a date; None for none that can be read."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isdecimal() else (parsedate_to_datetime(value) - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(LONGEST_PAUSE, max(0.0, seconds))
