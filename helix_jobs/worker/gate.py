"""JobGate: jobs run side by side, or one runs alone."""

from __future__ import annotations

import threading
import time
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Final

from helix_jobs.time_limits import DEFAULT_TIME_LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable

# After a job has waited in vain to run alone, others have the worker for this many times as long. The wait doubles each
# time, so that it outlasts jobs of any length.
PAUSE_FACTOR: Final = 4.0


class Entry(Enum):
    """The gate's answer to ``enter``."""

    ENTERED = "entered"
    CLOSED = "closed"
    TRY_LATER = "try later"


class JobGate:
    """Admits a worker's threads before they claim a job. Thread-safe.

    A job reaches its *last attempt* because its worker died at every earlier one, or the server that computed it was
    lost, and the job may be the cause. The job therefore runs alone in its worker, with no other job claimed. If it
    kills this worker too, no other job loses an attempt. If it was only a bystander, it succeeds. So a poisonous job
    ends as ``worker_lost`` or ``server_lost`` and harms no other job.

    The job's wait and its time alone are both limited. While it waits for the running jobs, which may take hours, it
    keeps all others out. When its patience is over, it must try later, and others are let in for a while. A poisonous
    job kills the worker soon, so after some time alone others are let in beside it.

    Trade-off: while such a job waits, the worker runs empty and then does these jobs one by one. That costs throughput
    only after two crashes in a row, and only for the jobs that were there both times, and at most a fifth of the time;
    running them in small groups would be faster but could fail an innocent job for good.

    Args:
        patience: Seconds the first such job waits for the jobs that run.
        clock: Monotonic seconds.
        wait: Waits for a change, at most so many seconds of that clock; None: without a limit.
    """

    def __init__(
        self,
        patience: float = DEFAULT_TIME_LIMITS.solitude,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Condition, float | None], object] = threading.Condition.wait,
    ) -> None:
        self._first_patience = patience
        self._patience = self._first_patience
        self._clock = clock
        self._changed = threading.Condition()
        self._wait = wait
        self._inside = 0
        # Until when the job inside runs alone.
        self._alone_until = 0.0
        self._waiting_alone = 0
        self._closed = False
        # Since when a job waits to run alone, and until when none may wait.
        self._waited_since: float | None = None
        self._others_until = 0.0

    @property
    def seconds_for_others(self) -> float:
        """Seconds until a job may wait to run alone again; 0 if one may now."""
        return max(0.0, self._others_until - self._clock())

    def enter(self, *, alone: bool) -> Entry:
        """Wait to be let in. A thread that was let in must ``leave``.

        Jobs that run alone go first: otherwise others would keep them waiting as long as there is work. Their patience
        is one for all of them together.
        """
        with self._changed:
            let_in = self._wait_alone() if alone else self._wait_beside()
            if not let_in:
                return Entry.CLOSED if self._closed else Entry.TRY_LATER
            self._inside += 1
            self._alone_until = self._clock() + self._first_patience if alone else 0.0
            return Entry.ENTERED

    def leave(self) -> None:
        """Leave the gate's inside."""
        with self._changed:
            self._inside -= 1
            self._alone_until = 0.0
            self._changed.notify_all()

    def close(self) -> None:
        """Let no more jobs in."""
        self._set_closed(closed=True)

    def reopen(self) -> None:
        """Let jobs in again."""
        self._set_closed(closed=False)

    def _wait_beside(self) -> bool:
        """Wait until no job runs alone or waits to; False when the gate is closed."""
        while not self._closed and (seconds := self._seconds_kept_out()):
            self._wait(self._changed, None if seconds == inf else seconds)
        return not self._closed

    def _seconds_kept_out(self) -> float:
        """At most how long side-by-side jobs must wait; infinite while a job waits to run alone."""
        return inf if self._waiting_alone else max(0.0, self._alone_until - self._clock())

    def _wait_alone(self) -> bool:
        """Wait until no job is inside; False when the gate is closed or the patience over."""
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
            # The jobs inside have ended: the next job waits only for this one and others that run alone.
            self._waited_since, self._patience = self._clock(), self._first_patience
            return True
        finally:
            self._waiting_alone -= 1
            if not self._waiting_alone:
                self._waited_since = None
                # Threads that woke before this one went on waiting for it.
                self._changed.notify_all()

    def _set_closed(self, *, closed: bool) -> None:
        with self._changed:
            self._closed = closed
            self._changed.notify_all()
