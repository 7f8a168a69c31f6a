"""Periodic: a duty that the worker repeats at an interval, on a thread of its own."""

from __future__ import annotations

import logging
import random
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING

from helix_jobs.errors import HelixError
from helix_jobs.exhaustion import explain_exhaustion, is_shortage
from helix_jobs.worker.complaint import Complaint

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from helix_jobs.observability.rounds import Rounds

logger = logging.getLogger(__name__)


def shortened(pause: float, *, jitter: float, chance: float) -> float:
    """Spread the calls of several processes: shorten a pause by a random part of it.

    Args:
        pause: Seconds.
        jitter: The largest part to cut off.
        chance: Between 0 and 1.
    """
    return pause * (1 - jitter * chance)


class Periodic:
    """Calls a function again and again until stopped. Each error is logged once, and the next call tries again.

    Args:
        name: The duty's name in the log. The thread is called ``helix-`` and this name.
        function: The duty. It may wait for files, locks and services, as nobody waits for it.
        interval: Seconds between the end of a call and the next one, after an error too: one call a second costs a
            service that is away nothing, and a duty of several parts must not be slow in all for the fault of one.
        jitter: The largest random part cut off each pause, see ``shortened``.
        at_once: The first call comes at the start, not an interval later.
        rounds: Counts the calls, under the duty's name, for the dead man's switch.
        at_end: Called by the thread when it ends.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[], object],
        interval: float,
        *,
        jitter: float = 0.0,
        at_once: bool = False,
        rounds: Rounds | None = None,
        at_end: Callable[[], object] = lambda: None,
    ) -> None:
        self._name = name
        self._function = function
        self._interval = interval
        self._jitter = jitter
        self._first_pause = 0.0 if at_once else interval
        self._rounds = rounds
        self._at_end = at_end
        self._complaint = Complaint(logger)
        self._stopped = False
        # Set by a stop or by ``wake``, to end a pause.
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"helix-{name}", daemon=True)

    @property
    def is_stopped(self) -> bool:
        """Whether the thread was asked to end; a long call may check this."""
        return self._stopped

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Make the next call now."""
        self._due.set()

    def cease(self) -> None:
        """Ask the thread to end and return at once. The function itself may call this."""
        self._stopped = True
        self._due.set()

    def stop(self, timeout: float | None = 1.0) -> bool:
        """Ask the thread to end and wait for it; it may still be in a call. Returns whether it has ended."""
        self.cease()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _main(self) -> None:
        with self._watched() as came_round:
            try:
                stopped = self._wait(self._first_pause)
                while not stopped:
                    came_round()
                    self._call()
                    stopped = self._wait(self._interval)
            finally:
                self._at_end()

    def _watched(self) -> AbstractContextManager[Callable[[], None]]:
        return nullcontext(lambda: None) if self._rounds is None else self._rounds.watched(self._name)

    def _wait(self, pause: float) -> bool:
        """Wait for the next call; return True if there will be none."""
        if not self._stopped:
            chance = random.random()  # noqa: S311  (nobody gains by guessing it)
            self._due.wait(shortened(pause, jitter=self._jitter, chance=chance))
            self._due.clear()
        return self._stopped

    def _call(self) -> None:
        try:
            self._function()
        except Exception as error:  # noqa: BLE001  (nobody else would do the duty)
            self._complain(error)
            return
        if not self._stopped:  # a duty that ended itself has not recovered
            self._complaint.end(f"{self._name}: it works again")

    def _complain(self, error: Exception) -> None:
        if isinstance(error, HelixError):
            self._complaint.say(f"{self._name}: {error}; trying again")
        elif is_shortage(error):
            self._complaint.say(f"{self._name}: {explain_exhaustion(error)}; trying again")
        else:
            self._complaint.say(f"{self._name}: unexpected error ({type(error).__name__}), trying again", error)
