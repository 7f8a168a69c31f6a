"""Periodic: a small duty of the worker that is done every so often, on a thread of its own."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from helix_jobs.errors import HelixError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


class Periodic:
    """Calls a function until it is stopped. Errors are logged, and the next call tries again.

    Args:
        name: Of the thread.
        function: May wait for files, locks and services; nobody waits for it.
        interval: Seconds between the end of a call and the next one.
    """

    def __init__(self, name: str, function: Callable[[], object], interval: float) -> None:
        self._function = function
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; the first call comes after an interval."""
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Ask the thread to end; it may still be in a call."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _main(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self._function()
            except HelixError as error:
                logger.warning("%s: %s; trying again", self._thread.name, error)
            except Exception:
                logger.exception("%s: unexpected error, trying again", self._thread.name)
