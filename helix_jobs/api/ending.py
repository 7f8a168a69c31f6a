"""Ending: a server that stops lets open requests go on for a while, and then tells their clients."""

from __future__ import annotations

import math
import time
from typing import Final

from helix_jobs.api.problems import Problem

# How long open requests may go on when the server stops.
PATIENCE_SECONDS: Final = 8.0
_RETRY_SECONDS: Final = 5


class Ending:
    """Whether the server stops. Used by the event loop's thread alone."""

    def __init__(self) -> None:
        self._due_at = math.inf

    def begin(self) -> None:
        """The server stops."""
        self._due_at = min(self._due_at, time.monotonic() + PATIENCE_SECONDS)

    @property
    def has_begun(self) -> bool:
        """Whether the server stops: what can be broken off at any time, then is."""
        return self._due_at < math.inf

    def check(self) -> None:
        """Go on while there is time.

        Raises:
            Problem: The server stops, and a client that waits longer would only see its connection break.
        """
        if time.monotonic() >= self._due_at:
            raise Problem(
                503,
                "the server stops before the answer is whole; send the request again",
                code="server_stops",
                retry_after=_RETRY_SECONDS,
            )
