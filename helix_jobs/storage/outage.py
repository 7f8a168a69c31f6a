"""Outlast an outage: retry for a while when a database server restarts."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final, TypeVar

from helix_jobs.errors import DatabaseRefusedError, DatabaseUnreachableError
from helix_jobs.storage.database import POSTGRES

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.storage.database import Database

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A server restarts within seconds, a small machine or a failover within a minute.
OUTAGE_SECONDS: Final = 60.0
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 2.0


def outlast(database: Database, action: Callable[[], T], *, seconds: float = OUTAGE_SECONDS) -> T:
    """Return the result of ``action``; while the server does not answer, retry it over new connections.

    Only for actions that may run twice. SQLite gets no retry: its troubles (a full disk, a lock held too long) do not
    pass by waiting.

    Args:
        database: The database that ``action`` uses.
        action: Reads or changes the database.
        seconds: How long an outage may last.

    Raises:
        DatabaseUnreachableError: The outage lasted longer, or the server answers with an error that waiting does not
            cure.
    """
    began: float | None = None
    pause = _FIRST_PAUSE
    while True:
        try:
            result = action()
        except DatabaseRefusedError:
            raise
        except DatabaseUnreachableError as error:
            now = time.monotonic()
            if database.dialect != POSTGRES or (began is not None and now - began >= seconds):
                raise
            if began is None:
                began = now
                logger.warning("%s; trying again for %.0f s", error, seconds)
            database.dispose()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            if began is not None:
                logger.warning("the database answers again, after %.1f s", time.monotonic() - began)
            return result
