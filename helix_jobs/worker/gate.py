"""JobGate: jobs run side by side, or one runs alone."""

from __future__ import annotations

import threading
import time
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Final

from helix_jobs.timing import DEFAULT_TIMING

if TYPE_CHECKING:
    from collections.abc import Callable

# How many times as long as one that is to run alone kept others waiting they have the worker to themselves afterwards.
# Each time it waits in vain the time doubles: jobs of any length end within it.
PAUSE_FACTOR: Final = 4.0


class Entry(Enum):
    """What came of asking to be let in."""

    ENTERED = "entered"
    CLOSED = "closed"
    TRY_LATER = "try later"


class JobGate:
    """Where the threads of a worker pass before they claim a job. Thread-safe.

    A job at its *last attempt* has died with its workers every time before, and may be what killed them. It runs alone
    in its worker, nothing else even claimed beside it: if it kills this one too, no other job loses an attempt with it,
    and if it was only a bystander, it succeeds. So a poisonous job ends as ``worker_lost`` and takes nobody along.

    It does not wait for that without an end: a job that runs for hours, or never ends, would keep all others out. When
    its patience is over, others are let in for a while, and it is told to try later. Nor is it alone without an end:
    what was going to kill the worker has done so by then, so others are let in beside it.

    Trade-off: while such a job waits, the worker runs empty and then does these jobs one by one. That costs throughput
    only after two crashes in a row, and only for the jobs that were there both times, and at most a fifth of the time;
    running them in small groups would be faster and could fail an innocent one for good.

    Args:
        patience: Seconds the first of them waits for the jobs that run.
        clock: Monotonic seconds.
        wait: Waits for a change for so many seconds of that clock; None for as long as it takes.
    """

    def __init__(
        self,
        patience: float = DEFAULT_TIMING.solitude,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Condition, float | None], object] = threading.Condition.wait,
    ) -> None:
        self._first_patience = patience
        self._patience = self._first_patience
        self._clock = clock
        self._changed = threading.Condition()
        self._wait = wait
        self._waiting = 0
        self._inside = 0
        # Until when the one inside is to be alone.
        self._alone_until = 0.0
        self._waiting_alone = 0
        self._closed = False
        # Since when somebody waits alone, and until when nobody may.
        self._waited_since: float | None = None
        self._others_until = 0.0

    @property
    def waiting(self) -> int:
        """How many wait to be let in, alone or beside others."""
        with self._changed:
            return self._waiting

    @property
    def seconds_for_others(self) -> float:
        """How long nobody may wait to run alone from now on; 0 if somebody may."""
        return max(0.0, self._others_until - self._clock())

    def enter(self, *, alone: bool) -> Entry:
        """Wait for leave to run. Whoever was let in must ``leave``.

        Those who are to run alone go first, or others would keep them waiting for as long as there is work; but only
        for so long, together.
        """
        with self._changed:
            self._waiting += 1
            try:
                let_in = self._wait_alone() if alone else self._wait_beside()
            finally:
                self._waiting -= 1
            if not let_in:
                return Entry.CLOSED if self._closed else Entry.TRY_LATER
            self._inside += 1
            self._alone_until = self._clock() + self._first_patience if alone else 0.0
            return Entry.ENTERED

    def leave(self) -> None:
        """Make room."""
        with self._changed:
            self._inside -= 1
            self._alone_until = 0.0
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in any more."""
        self._set_closed(closed=True)

    def reopen(self) -> None:
        """Let jobs in again."""
        self._set_closed(closed=False)

    def _wait_beside(self) -> bool:
        """Wait until nobody is, or waits to be, alone; False when the gate is closed."""
        while not self._closed and (seconds := self._seconds_kept_out()):
            self._wait(self._changed, None if seconds == inf else seconds)
        return not self._closed

    def _seconds_kept_out(self) -> float:
        """How long those that run side by side must wait at most; endless while somebody waits alone."""
        return inf if self._waiting_alone else max(0.0, self._alone_until - self._clock())

    def _wait_alone(self) -> bool:
        """Wait until nobody is inside; False when the gate is closed or the patience over."""
        if self.seconds_for_others:
            return False
        self._waiting_alone += 1
        if self._waited_since is None:
            self._waited_since = self._clock()
        try:
            while self._inside and not self._closed and not self.seconds_for_others:
                left = self._waited_since + self._patience - self._clock()
                if left <= 0:
                    self._others_until = self._clock() + PAUSE_FACTOR * self._patience
                    self._patience *= 2
                    self._changed.notify_all()  # the others that wait to run alone
                    return False
                self._wait(self._changed, left)
            if self._inside or self._closed:
                return False
            # The jobs inside have ended: whoever waits next waits for this one, and for others like it.
            self._waited_since, self._patience = self._clock(), self._first_patience
            return True
        finally:
            self._waiting_alone -= 1
            if not self._waiting_alone:
                self._waited_since = None
                # Those who woke before this one waited on for it.
                self._changed.notify_all()

    def _set_closed(self, *, closed: bool) -> None:
        with self._changed:
            self._closed = closed
            self._changed.notify_all()
