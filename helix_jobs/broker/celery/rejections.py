"""Rejections: counts dropped foreign messages, and logs them at most once a minute."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 60.0


class Rejections:
    """Logs the first rejection at once and those of each minute after it together. Thread-safe.

    Args:
        on_reject: Called with the number of each rejection.
        interval: Seconds between two log lines.
    """

    def __init__(self, on_reject: Callable[[int], None], interval: float = INTERVAL_SECONDS) -> None:
        self._on_reject = on_reject
        self._interval = interval
        self._lock = threading.Lock()
        self._unsaid: Counter[str] = Counter()
        self._timer: threading.Timer | None = None

    def note(self, why: str, count: int = 1) -> None:
        """Count messages that were dropped.

        Args:
            why: The reason in a few fixed words. Never the messages' contents, which are foreign and may be large.
            count: How many messages.
        """
        self._on_reject(count)
        with self._lock:
            self._unsaid[why] += count
            if self._timer is None:
                self._say()

    def close(self) -> None:
        """Log the rejections that are not logged yet."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._log()

    def _say(self) -> None:
        self._log()
        timer = threading.Timer(self._interval, self._minute_over)
        timer.daemon = True
        with suppress(RuntimeError):  # no thread is left for the timer: the next rejection is logged at once
            timer.start()
            self._timer = timer

    def _minute_over(self) -> None:
        with self._lock:
            if self._timer is not threading.current_thread():
                return  # closed meanwhile
            self._timer = None
            if self._unsaid:
                self._say()

    def _log(self) -> None:
        if self._unsaid:
            total = self._unsaid.total()
            kinds = ", ".join(f"{count:,} {why}" for why, count in self._unsaid.most_common())
            logger.warning("dropped %s that no worker takes from the broker: %s", _messages(total), kinds)
            self._unsaid.clear()


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count:,} messages"
