"""Sessions: who has signed in to the page. Only digests of their tokens are kept, in the memory of this server.

Trade-off: a server that restarts, and another server of the same database, ask for the key again. In return nothing
that lets anybody in is stored, and signing out takes effect at once.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

COOKIE: Final = "helix_session"
LIFETIME_SECONDS: Final = 12 * 3600
# The oldest session ends where one more than this begins.
_MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class _Session:
    owner: str
    ends_at: float


class Sessions:
    """The sessions of one server. Every method may be called by any thread.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # The token's digest -> its session, in the order of their ends.
        self._found: dict[bytes, _Session] = {}

    def begin(self, owner: str) -> str:
        """Begin a session; returns the token that its cookie carries."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._forget_ended()
            while len(self._found) >= _MOST:
                del self._found[next(iter(self._found))]
            self._found[_digest(token)] = _Session(owner, self._clock() + LIFETIME_SECONDS)
        return token

    def owner(self, cookie_header: str | None) -> str | None:
        """Whose session the request's ``Cookie`` header carries; None if none."""
        token = _token(cookie_header)
        if token is None:
            return None
        with self._lock:
            self._forget_ended()
            session = self._found.get(_digest(token))
        return None if session is None else session.owner

    def end(self, cookie_header: str | None) -> None:
        """End the session that the header carries, if any."""
        token = _token(cookie_header)
        if token is not None:
            with self._lock:
                self._found.pop(_digest(token), None)

    def _forget_ended(self) -> None:
        now = self._clock()
        for digest, session in list(self._found.items()):
            if session.ends_at > now:
                return
            del self._found[digest]


def _token(cookie_header: str | None) -> str | None:
    try:
        cookies = SimpleCookie(cookie_header or "")
    except CookieError:
        return None
    found = cookies.get(COOKIE)
    return None if found is None else found.value


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()
