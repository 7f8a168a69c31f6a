"""RequestMemo: requests that came before, byte for byte, and how to answer them again without reading them again.

Monitors and clients that poll send the same bytes again and again. To parse, check and route them takes many times as
long as the answer. What the guard allows depends on a request's head and on the server's settings alone, so a head that
it allowed once it allows again. Whether there is an answer to give again is decided for each request.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping, Sequence

    from helix_jobs.api.figures import Figures, RouteFigures

# Trade-off: longer heads stay on the usual way, and a client that makes up heads fills the memo with little.
MAX_HEAD_BYTES: Final = 4096
MAX_HEADS: Final = 4096
_STATE: Final = "again"
_STATUS: Final = 200


@dataclass(frozen=True, slots=True)
class Again:
    """How a request is answered when it comes again.

    Attributes:
        route: Its route's pattern, for the figures.
        body: The JSON text to answer with; None where there is none that still holds.
    """

    route: str
    body: Callable[[], bytes | None]


@dataclass(frozen=True, slots=True)
class _Entry:
    again: Again
    figures: RouteFigures


class RequestMemo:
    """Used by the event loop's thread alone.

    A head is known by its digest, so that no API key stays in memory, and no time tells how much of one was right.

    Args:
        figures: Count the requests that are answered here.
    """

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._entries: dict[bytes, _Entry] = {}
        self._headers: Sequence[tuple[bytes, bytes]] = ()
        self._beginning = b""

    def answer(self, head: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
        """The whole answer to a request that came before; None if it has to go the usual way.

        Args:
            head: All bytes of the request.
            headers: What every answer has among its headers. A new list where they change.
        """
        if len(head) > MAX_HEAD_BYTES or (entry := self._entries.get(sha256(head).digest())) is None:
            return None
        begun = time.perf_counter()
        body = entry.again.body()
        if body is None:
            return None
        if headers is not self._headers:
            self._headers = headers
            lines = [b"HTTP/1.1 200 OK", *(b"%b: %b" % header for header in headers)]
            self._beginning = b"\r\n".join([*lines, b"content-length: "])
        entry.figures.count(time.perf_counter() - begun)
        return b"%b%d\r\ncontent-type: application/json\r\n\r\n%b" % (self._beginning, len(body), body)

    def note(self, head: bytes, state: MutableMapping[str, Any]) -> None:
        """Remember a request that was answered, if its route has said how it is answered again.

        Args:
            head: All bytes of the request.
            state: Its scope's ``state``.
        """
        again: Again | None = state.get(_STATE)
        if again is None or len(head) > MAX_HEAD_BYTES:
            return
        digest = sha256(head).digest()
        while digest not in self._entries and len(self._entries) >= MAX_HEADS:
            self._entries.pop(next(iter(self._entries)))
        self._entries[digest] = _Entry(again, self._figures.of_route("GET", again.route, _STATUS))


def answer_again(state: MutableMapping[str, Any], again: Again) -> None:
    """Say how a GET request is answered when it comes again. Its answer now has the status 200, and is JSON.

    Args:
        state: The ``state`` of the request's scope.
        again: How.
    """
    state[_STATE] = again
