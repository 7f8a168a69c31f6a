"""Outlasting an outage: a database server that is being started again is asked again, for a while."""

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
    """Return what ``action`` returns; while the server does not answer, try it again over new connections.

    For what may be done twice. Only Postgres is waited for: what ails a SQLite file (a full disk, a lock held too long)
    does not pass by waiting.

    Args:
        database: What ``action`` talks to.
        action: Asks or changes something.
        seconds: How long an outage may last.

    Raises:
        DatabaseUnreachableError: It lasted longer, or the server answers and lacks what waiting does not bring.
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
