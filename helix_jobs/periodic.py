"""Periodic: a small duty of the worker that is done every so often, on a thread of its own."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from helix_jobs.complaint import Complaint
from helix_jobs.errors import HelixError
from helix_jobs.exhaustion import explain_exhaustion, is_shortage

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


class Periodic:
    """Calls a function until it is stopped. Errors are logged, each once, and the next call tries again.

    Args:
        name: Of the thread.
        function: May wait for files, locks and services; nobody waits for it.
        interval: Seconds between the end of a call and the next one.
    """

    def __init__(self, name: str, function: Callable[[], object], interval: float) -> None:
        self._function = function
        self._interval = interval
        self._complaint = Complaint(logger)
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
            except Exception as error:  # noqa: BLE001  (nobody else would do the duty)
                self._complain(error)
            else:
                self._complaint.end(f"{self._thread.name}: it works again")

    def _complain(self, error: Exception) -> None:
        who = self._thread.name
        if isinstance(error, HelixError):
            self._complaint.say(f"{who}: {error}; trying again")
        elif is_shortage(error):
            self._complaint.say(f"{who}: {explain_exhaustion(error)}; trying again")
        else:
            self._complaint.say(f"{who}: unexpected error ({type(error).__name__}), trying again", error)
