"""HardExit: the way out that waits for nobody. What is lost by it is reclaimed later."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from helix_jobs.worker.dead_man import say, where_threads_stand

if TYPE_CHECKING:
    from collections.abc import Iterator


class HardExit:
    """Ends the process without its orderly way out.

    Args:
        is_allowed: False where the process is not the worker's own; then nothing happens.
    """

    def __init__(self, *, is_allowed: bool) -> None:
        self._is_allowed = is_allowed

    def after(self, seconds: float, code: int) -> None:
        """Make sure the process ends, whatever hangs in the orderly way out."""
        if self._is_allowed:
            timer = threading.Timer(seconds, os._exit, (code,))
            timer.daemon = True
            timer.start()

    @contextmanager
    def unless_within(self, seconds: float, code: int) -> Iterator[None]:
        """End the process if the block has not ended in so many seconds."""
        timer = threading.Timer(seconds, os._exit, (code,))
        timer.daemon = True
        if self._is_allowed:
            with suppress(RuntimeError):  # no thread is left: what would be cut off is not
                timer.start()
        try:
            yield
        finally:
            timer.cancel()
            if timer.is_alive():
                timer.join()  # one that wakes while the interpreter ends aborts it, where no descriptor is left

    def now(self, why: str, code: int) -> None:
        """Say why, and where every thread stands, and end."""
        say(f"this worker cannot go on and ends: {why}. Where its threads stand:\n{where_threads_stand()}")
        if self._is_allowed:
            os._exit(code)
