"""WatchedTime: how much of the time between two looks was watched."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class WatchedTime:
    """Measures the time between looks, for whoever judges that something has not changed for so long.

    At most two intervals count. In a longer gap nobody looked: this process stood still, or whatever it asks took its
    time, and what it judges may have changed meanwhile without being seen.

    Args:
        interval: Seconds between looks, by intention.
        clock: Monotonic seconds.
    """

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._looked_at: float | None = None

    def look(self) -> float:
        """Note a look; return the watched seconds since the previous one."""
        now = self._clock()
        gap = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        return min(gap, 2 * self._interval)
