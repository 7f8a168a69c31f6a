"""WatchedTime: how much of the time between two samples was watched."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class WatchedTime:
    """Measures the time between samples, for judging how long a value has not changed.

    At most two intervals count. In a longer gap no sample was taken: this process was suspended or waited for an
    answer, and the value may have changed unseen.

    Args:
        interval: Intended seconds between samples.
        clock: Monotonic seconds.
    """

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._looked_at: float | None = None

    def look(self) -> float:
        """Note a sample; return the watched seconds since the previous one."""
        now = self._clock()
        gap = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        return min(gap, 2 * self._interval)
