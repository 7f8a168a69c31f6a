"""StrandedMessages: jobs whose delivered messages this worker could not give back to the broker.

When a connection breaks or a worker stops, messages of jobs not begun are given back. If the broker does not answer
just then, these messages stay among the unacknowledged ones: no worker gets them, and they do not count as lost, as
they are still there. Only the worker that held them knows which they are.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable


class StrandedMessages:
    """Remembers these jobs until their messages can be sent again. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: set[int] = set()

    @property
    def ids(self) -> frozenset[int]:
        """Jobs whose messages are to be sent again."""
        with self._lock:
            return frozenset(self._ids)

    def note(self, job_ids: Iterable[int]) -> None:
        """Remember jobs whose messages could not be given back."""
        with self._lock:
            self._ids.update(job_ids)

    def forget(self, job_ids: Iterable[int]) -> None:
        """Forget jobs whose messages will be sent again."""
        with self._lock:
            self._ids.difference_update(job_ids)


# A global: kombu makes a worker's connections, and takes no argument for them.
stranded: Final = StrandedMessages()
