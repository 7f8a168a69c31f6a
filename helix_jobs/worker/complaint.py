"""Complaint: logs a lasting problem once, and again when the problem changes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger


class Complaint:
    """Logs why something that is tried repeatedly fails. For one thread: two might log the same problem twice.

    Args:
        logger: The log.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._said: str | None = None

    def say(self, what: str, error: BaseException | None = None) -> None:
        """Log what is wrong, unless it was the last thing logged.

        Args:
            what: The problem in words.
            error: An unexpected error, logged with its traceback.
        """
        level = logging.DEBUG if what == self._said else logging.WARNING if error is None else logging.ERROR
        self._said = what
        self._logger.log(level, what, exc_info=error if level != logging.DEBUG else None)

    def end(self, what: str = "") -> None:
        """Note that the problem is over: the next one is logged again. Log ``what`` if there was a problem."""
        if self._said is not None and what:
            self._logger.info("%s", what)
        self._said = None
