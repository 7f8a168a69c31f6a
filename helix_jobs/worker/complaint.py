"""Complaint: what is said of a trouble that lasts. Once, and again when it becomes another."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger


class Complaint:
    """The log's line about something that is tried again and again. It is one thread's, or may be said twice.

    Args:
        logger: Where it is said.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._said: str | None = None

    def say(self, what: str, error: BaseException | None = None) -> None:
        """Say what is wrong, unless that was the last thing said.

        Args:
            what: In words.
            error: With its traceback, for what nobody expected.
        """
        level = logging.DEBUG if what == self._said else logging.WARNING if error is None else logging.ERROR
        self._said = what
        self._logger.log(level, what, exc_info=error if level != logging.DEBUG else None)

    def end(self, what: str = "") -> None:
        """It is over: the next trouble is news. Say so, if there was one and there are words for it."""
        if self._said is not None and what:
            self._logger.info("%s", what)
        self._said = None
