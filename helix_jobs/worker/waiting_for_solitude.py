"""PostponedJobs: jobs that a worker leaves in the queue for a while, and when to send their messages again."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class PostponedJobs:
    """Remembers postponed jobs, in memory only. Thread-safe.

    If the worker dies, the reconciler sends all its messages again.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until: dict[int, float] = {}

    @property
    def ids(self) -> frozenset[int]:
        """Postponed jobs that ``take_due`` has not returned yet."""
        with self._lock:
            return frozenset(self._until)

    def put_off(self, job_id: int, seconds: float) -> bool:
        """Postpone a job by so many seconds. False: it is postponed already, and its time has not come."""
        with self._lock:
            is_news = job_id not in self._until
            self._until[job_id] = self._clock() + seconds
        return is_news

    def take_due(self) -> list[int]:
        """Forget the jobs whose time has come, and return them."""
        now = self._clock()
        with self._lock:
            due = [job_id for job_id, until in self._until.items() if until <= now]
            for job_id in due:
                del self._until[job_id]
        return due
