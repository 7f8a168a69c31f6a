"""CallsInFlight: which database calls wait for an answer, since when, and on which socket.

It can end a call that gets no answer and that its own time limit fails to end. It touches memory and sockets only, so
that a thread which must never wait can use it.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, slots=True)
class Call:
    """One statement and its answer.

    Attributes:
        began: Monotonic seconds.
        descriptor: File descriptor of the connection's socket.
        limit: Seconds the call may take; None for no limit.
    """

    began: float
    descriptor: int
    limit: float | None


class CallsInFlight:
    """The unanswered calls of one ``Database``. Thread-safe; no method waits for I/O.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._calls: dict[int, Call] = {}
        self._next = 0

    @contextmanager
    def note(self, descriptor: int, limit: float | None) -> Iterator[None]:
        """Note a call for as long as the block lasts. The socket must not be closed inside it."""
        with self._lock:
            key = self._next
            self._next += 1
            self._calls[key] = Call(self._clock(), descriptor, limit)
        try:
            yield
        finally:
            with self._lock:
                del self._calls[key]

    def close_overdue(self, seconds: float) -> int:
        """Shut the sockets of calls that have waited for ``seconds``, or for their own limit if that is longer.

        The waiting thread gets an error at once, as from a lost connection. Calls without a limit are left alone.

        Returns:
            How many sockets were shut.
        """
        with self._lock:
            now = self._clock()
            overdue = [
                call
                for call in self._calls.values()
                if call.limit is not None and now - call.began >= max(seconds, call.limit)
            ]
            # Under the lock: a listed call has not ended, so its descriptor cannot belong to another file by now.
            for call in overdue:
                _shut(call.descriptor)
        return len(overdue)


def _shut(descriptor: int) -> None:
    with suppress(OSError):
        borrowed = socket.socket(fileno=descriptor)
        try:
            borrowed.shutdown(socket.SHUT_RDWR)
        finally:
            borrowed.detach()
