"""HardExit: ends the process without waiting. The jobs it loses are reclaimed later."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from helix_jobs.worker.dead_man import say, where_threads_stand

if TYPE_CHECKING:
    from collections.abc import Iterator


class HardExit:
    """Ends the process without an orderly shutdown.

    Args:
        is_allowed: False if the process is not the worker's own; then nothing happens.
    """

    def __init__(self, *, is_allowed: bool) -> None:
        self._is_allowed = is_allowed
        self._timers: list[threading.Timer] = []

    def after(self, seconds: float, code: int) -> None:
        """End the process after so many seconds, whatever hangs in the orderly shutdown."""
        if self._is_allowed:
            timer = threading.Timer(seconds, os._exit, (code,))
            timer.daemon = True
            timer.start()
            self._timers.append(timer)

    def cancel(self) -> None:
        """Let the process live: the worker has ended in order, and the process may do something else."""
        for timer in self._timers:
            timer.cancel()

    @contextmanager
    def unless_within(self, seconds: float, code: int) -> Iterator[None]:
        """End the process if the block has not ended in so many seconds."""
        timer = threading.Timer(seconds, os._exit, (code,))
        timer.daemon = True
        if self._is_allowed:
            with suppress(RuntimeError):  # no thread is left for the timer: the block gets no limit
                timer.start()
        try:
            yield
        finally:
            timer.cancel()
            if timer.is_alive():
                timer.join()  # a timer that wakes while the interpreter ends aborts it if no descriptor is left

    def now(self, why: str, code: int) -> None:
        """Log the reason and where every thread stands, and end the process."""
        say(f"this worker cannot go on and ends: {why}. Where its threads stand:\n{where_threads_stand()}")
        if self._is_allowed:
            os._exit(code)
