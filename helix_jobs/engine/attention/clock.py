"""AttentionClock: how long attention takes within a step."""

from __future__ import annotations

import time


class AttentionClock:
    """Sums up time spent in attention. Of use on devices that have finished an operator when it returns."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._started = 0.0

    def start(self) -> None:
        """Attention of a layer begins."""
        self._started = time.perf_counter()

    def stop(self) -> None:
        """It ends."""
        self._seconds += time.perf_counter() - self._started

    def add(self, seconds: float) -> None:
        """Count time that compiled code has measured itself."""
        self._seconds += seconds

    def take(self) -> float:
        """Return the seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds
