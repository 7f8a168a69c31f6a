"""NotifierThread: has a notifier look every few seconds, beside the work of its process."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import HelixError, without_text

if TYPE_CHECKING:
    from helix_jobs.notify.notifier import Notifier

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
_LAST_LOOK_SECONDS: Final = 5.0


class NotifierThread:
    """Starts at once. Each error is logged once, and the next look tries again; nobody waits for the thread.

    Args:
        notifier: What looks.
        interval: Seconds between two looks.
    """

    def __init__(self, notifier: Notifier, interval: float = LOOK_SECONDS) -> None:
        self._notifier = notifier
        self._interval = interval
        self._said = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="helix-notices", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread after a last look, which is given some seconds: what has ended is told now, not next time."""
        self._stopping.set()
        self._thread.join(_LAST_LOOK_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            self._notifier.look()
        except HelixError as error:
            if str(error) != self._said:
                logger.warning("nobody is told of events now: %s; trying again", error)
            self._said = str(error)
        except Exception as error:
            if type(error).__name__ != self._said:
                logger.error("nobody is told of events now: unexpected error", exc_info=without_text(error))  # noqa: TRY400
            self._said = type(error).__name__
        else:
            self._said = ""
