"""EngineOutage: keeps jobs from being claimed while the engine takes none, as its server is lost."""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# How often a thread looks whether the outage is over.
LOOK_SECONDS: Final = 0.5
# How long a delivered job waits for the end of an outage before its message goes to whichever worker takes it, and how
# long it is left alone then. Trade-off: a shorter patience gives jobs sooner to workers whose servers live, and sends
# messages round where there are none.
PATIENCE_SECONDS: Final = 60.0


class Wait(Enum):
    """How waiting has ended."""

    OVER = "over"
    STOPPED = "stopped"
    IN_VAIN = "in vain"


class EngineOutage:
    """Asks the engine whether it takes requests. Thread-safe.

    Args:
        read: Why the engine takes no requests; None while it does.
        patience: Seconds that a job waits for the end of an outage.
        clock: Monotonic seconds.
        sleep: Passes so many seconds of that clock.
    """

    def __init__(
        self,
        read: Callable[[], str | None],
        patience: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._read = read
        self.patience = patience
        self._clock = clock
        self._sleep = sleep

    @property
    def lasts(self) -> bool:
        """Whether the engine takes no requests."""
        return self._read() is not None

    def wait(self, is_stopped: Callable[[], bool]) -> Wait:
        """Wait until the engine takes requests.

        Args:
            is_stopped: Whether the worker takes no more jobs anyway.
        """
        until = self._clock() + self.patience
        while self.lasts:
            if is_stopped():
                return Wait.STOPPED
            if self._clock() >= until:
                return Wait.IN_VAIN
            self._sleep(LOOK_SECONDS)
        return Wait.OVER
