"""Others: whether somebody else uses the worker's machine or device, so that it yields by itself.

A sign must last before it counts, and must be gone for longer before the worker goes on: who pauses for a moment has
not left, and to load the models again takes seconds.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from helix_jobs.wording import percent

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.yield_when import YieldWhen

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
# How long a sign must last, and how long none may be there. Trade-off: shorter times leave the device sooner, and have
# the worker go to and fro beside somebody who comes and goes.
COME_SECONDS: Final = 10.0
GONE_SECONDS: Final = 60.0


class Use(Protocol):
    """What others do on this machine."""

    def load(self) -> float | None:
        """The share of the processors that they have used since the last call; None at the first."""

    def memory(self) -> float | None:
        """The share of the device's memory that they hold; None if the device does not tell."""

    def processes(self) -> frozenset[str]:
        """The names of all processes, in small letters."""


@dataclass(frozen=True, slots=True)
class Presence:
    """Whether somebody else is there.

    Attributes:
        sign: Why they are; None while they are not.
        differs_since: Since when what is seen says otherwise; None while it does not.
    """

    sign: str | None = None
    differs_since: float | None = None


def judge(before: Presence, seen: str | None, now: float) -> Presence:
    """What is known after another look.

    Args:
        before: What was known.
        seen: The sign that is there; None for none.
        now: Monotonic seconds.
    """
    if (seen is None) == (before.sign is None):
        return replace(before, differs_since=None)
    since = now if before.differs_since is None else before.differs_since
    if now - since < (COME_SECONDS if before.sign is None else GONE_SECONDS):
        return replace(before, differs_since=since)
    return Presence(seen)


class Others:
    """Looks now and then. Asked by one thread at a time.

    Args:
        when: The signs.
        use: What others do.
        clock: Monotonic seconds.
    """

    def __init__(self, when: YieldWhen, use: Use, clock: Callable[[], float] = time.monotonic) -> None:
        self._when = when
        self._use = use
        self._clock = clock
        self._looked_at = float("-inf")
        self._presence = Presence()

    def sign(self) -> str | None:
        """Why the worker must yield; None if it need not. May be asked every second."""
        now = self._clock()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._presence = judge(self._presence, self._seen(), now)
        return self._presence.sign

    def _seen(self) -> str | None:
        """The first sign that is there. Its words have no figure that changes, as they are logged when they do."""
        when = self._when
        # Asked for each time, as it is measured from one call to the next.
        load = None if when.load is None else self._use.load()
        if when.load is not None and load is not None and load > when.load:
            return f"others use more than {percent(when.load)} of the processors"
        memory = None if when.memory is None else self._use.memory()
        if when.memory is not None and memory is not None and memory > when.memory:
            return f"others hold more than {percent(when.memory)} of the device's memory"
        if when.processes:
            running = self._use.processes()
            for name in when.processes:
                if name.lower() in running:
                    return f"{name} runs"
        return None
