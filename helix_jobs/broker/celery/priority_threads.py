"""PriorityThreads: runs calls on a fixed number of threads, the most urgent first."""

from __future__ import annotations

import heapq
import itertools
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# The message priority that spare threads serve, see ``message_priority``.
URGENT: Final = 0


@dataclass(order=True, slots=True)
class _Call:
    """A call that waits. Of equal priorities the one that came first is less."""

    priority: int
    number: int
    function: Callable[[], Any] = field(compare=False)
    future: Future[Any] = field(compare=False)


class PriorityThreads:
    """Calls of any priority share ``limit`` threads; urgent ones have ``spare`` threads more. Thread-safe.

    The standard library's pool has one queue, first come, first served.

    Args:
        limit: Calls that run at once and are not urgent.
        spare: Threads beyond those.
    """

    def __init__(self, limit: int, spare: int) -> None:
        self._limit = limit
        self._most = limit + spare
        self._changed = threading.Condition()
        self._waiting: list[_Call] = []
        self._numbers = itertools.count()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        # Running calls that are not urgent.
        self._ordinary = 0
        self._closed = False

    @property
    def thread_count(self) -> int:
        """Threads that were started."""
        return len(self._threads)

    def submit(self, priority: int, function: Callable[[], Any]) -> Future[Any]:
        """Have ``function`` called once a thread is free for it.

        Args:
            priority: The lowest number goes first; ``URGENT`` may use the spare threads.
            function: What to call.

        Raises:
            RuntimeError: The threads were shut down, or the system allows not even one.
        """
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the threads were shut down")
            call = _Call(priority, next(self._numbers), function, future)
            heapq.heappush(self._waiting, call)
            if self._idle:
                self._changed.notify()
            elif len(self._threads) < self._most:
                self._begin_thread(call)
        return future

    def shutdown(self, *, cancel_futures: bool = False) -> None:
        """Wait for the running calls, and for those that wait unless they are cancelled. May be called again."""
        with self._changed:
            self._closed = True
            cancelled = [call.future for call in self._waiting] if cancel_futures else []
            if cancel_futures:
                self._waiting.clear()
            self._changed.notify_all()
        for future in cancelled:
            future.cancel()
        for thread in self._threads:
            thread.join()

    def _begin_thread(self, call: _Call) -> None:
        thread = threading.Thread(target=self._run, name=f"helix-job-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system allows no more threads
            if not self._threads:
                self._waiting.remove(call)
                raise
        else:
            self._threads.append(thread)

    def _run(self) -> None:
        while (call := self._next()) is not None:
            try:
                if call.future.set_running_or_notify_cancel():
                    _carry_out(call)
            finally:
                with self._changed:
                    if call.priority != URGENT:
                        self._ordinary -= 1
                        self._changed.notify()
            del call  # what it holds must not wait for the next one

    def _next(self) -> _Call | None:
        """Wait for a call; None when no more will come."""
        with self._changed:
            while not self._may_begin():
                if self._closed and not self._waiting:
                    return None
                self._idle += 1
                try:
                    self._changed.wait()
                finally:
                    self._idle -= 1
            call = heapq.heappop(self._waiting)
            self._ordinary += call.priority != URGENT
            return call

    def _may_begin(self) -> bool:
        return bool(self._waiting) and (self._waiting[0].priority == URGENT or self._ordinary < self._limit)


def _carry_out(call: _Call) -> None:
    try:
        value = call.function()
    except BaseException as error:  # noqa: BLE001  (it is raised where the future is asked)
        call.future.set_exception(error)
    else:
        call.future.set_result(value)
