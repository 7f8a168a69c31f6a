"""RequestRate: how many requests a key may send in a minute. A bucket for each key runs full in a minute.

Trade-off: requests that only read are not counted. A client that looks after its batch every second, or downloads its
answers, costs little, and a refusal would only make it ask again.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from starlette.datastructures import MutableHeaders

from helix_jobs.api.guards import SAFE_METHODS
from helix_jobs.api.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MINUTE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Standing:
    """What a key has left.

    Attributes:
        limit: Requests a minute.
        remaining: Requests that it may send at once.
        reset_seconds: Seconds until its bucket is full again.
    """

    limit: int
    remaining: int
    reset_seconds: float

    @property
    def headers(self) -> dict[str, str]:
        """The headers by which OpenAI's interface tells it."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{self.reset_seconds:.2f}s",
        }


class RequestRate:
    """Counts requests. Used by the event loop's thread alone.

    Args:
        per_minute: Requests that a key may send in a minute; all of them may come at once.
        clock: Seconds that only grow.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = per_minute
        self._clock = clock
        # The key's owner -> when its bucket is full again. A bucket that is not here is full.
        self._full_at: dict[str, float] = {}

    def take(self, owner: str) -> Standing:
        """Count a request of a key.

        Raises:
            Problem: The key has none left; ``retry_after`` is the time until it has one.
        """
        now, each = self._clock(), _MINUTE / self._limit
        full_at = max(now, self._full_at.get(owner, now)) + each
        missing = full_at - now - _MINUTE
        if missing > each / 1000:  # rounding of the clock's numbers is no request
            raise Problem(
                429,
                f"this key may send {self._limit} requests a minute (HELIX_REQUESTS_PER_MINUTE), and has; try again, "
                "or send a batch, which is one request",
                code="rate_limit_exceeded",
                retry_after=math.ceil(missing),
            )
        self._full_at[owner] = full_at
        return Standing(self._limit, int((_MINUTE - (full_at - now)) / each + 0.001), full_at - now)


class Paced:
    """ASGI middleware behind the guard, which has found the key's owner.

    Args:
        app: The application behind it.
        rate: What each key may send.
    """

    def __init__(self, app: ASGIApp, rate: RequestRate) -> None:
        self._app = app
        self._rate = rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass.

        Raises:
            Problem: See ``RequestRate.take``; the guard answers it.
        """
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS or not (owner := scope["state"]["owner"]):
            await self._app(scope, receive, send)
            return
        standing = self._rate.take(owner)

        async def telling_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(standing.headers)
            await send(message)

        await self._app(scope, receive, telling_send)
