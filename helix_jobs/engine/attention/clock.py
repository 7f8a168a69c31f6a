"""AttentionClock: how long attention takes within a step."""

from __future__ import annotations

import time


class AttentionClock:
    """Sums up time spent in attention. Only for devices where an operator has finished when its call returns."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._started = 0.0

    def start(self) -> None:
        """Note that attention of a layer begins."""
        self._started = time.perf_counter()

    def stop(self) -> None:
        """Add the time since ``start``."""
        self._seconds += time.perf_counter() - self._started

    def add(self, seconds: float) -> None:
        """Count time that compiled code has measured itself."""
        self._seconds += seconds

    def take(self) -> float:
        """Return the seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds
