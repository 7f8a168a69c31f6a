"""Retention: removes interactive requests some time after they were answered."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from helix_jobs.client.purge import plan_purge, purge
from helix_jobs.errors import HelixError, NotEndedError, NotFoundError
from helix_jobs.storage.single_request import ended_interactive_batches

if TYPE_CHECKING:
    from helix_jobs.storage.database import Database

logger = logging.getLogger(__name__)

_PERIOD_SECONDS: Final = 60.0
_AT_ONCE: Final = 500


class Retention:
    """Looks once a minute, on a thread of its own. Several servers of one database may do so at once.

    Args:
        database: The database.
        hours: How long an answered request stays; 0 keeps all of them.
    """

    def __init__(self, database: Database, hours: int) -> None:
        self._database = database
        self._kept = timedelta(hours=hours)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="helix-retention", daemon=True)
        if hours:
            self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def remove_old(self, now: datetime) -> int:
        """Remove what is old; returns how many requests.

        Raises:
            DatabaseUnreachableError: The database does not answer.
        """
        removed = 0
        while not self._stopping.is_set():
            with self._database.read() as connection:
                old = ended_interactive_batches(connection, now - self._kept, _AT_ONCE)
            if not old:
                break
            try:
                plan = plan_purge(self._database, batch_ids=old)
            except (NotFoundError, NotEndedError):
                continue  # another server removed some meanwhile, or a person has one tried again
            removed += purge(self._database, plan).batches
        return removed

    def _run(self) -> None:
        while not self._stopping.wait(_PERIOD_SECONDS):
            try:
                if removed := self.remove_old(datetime.now(UTC)):
                    logger.info("%d answered requests were older than %s and are removed", removed, self._kept)
            except HelixError as error:
                logger.warning("answered requests are not removed now: %s", error)
