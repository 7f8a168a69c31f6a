"""StrandedMessages: jobs whose messages this worker was delivered and could not give back to the broker.

A connection that breaks, or a worker that stops, gives back what it has not begun. Where the broker does not answer
just then, those messages stay among the unacknowledged: no worker is asked for them, and as they are still there they
do not count as lost. Only the worker that held them knows which they are. It takes the marks off their jobs, so that
their messages are sent again.

Trade-off: a broker that has taken a message back without its answer getting through carries it twice; a duplicate
finds nothing to do. A stop over a sound connection costs none, which taking off every mark at each stop would.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from helix_jobs.storage import store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection

    from helix_jobs.storage.database import Database


class StrandedMessages:
    """Remembers them until their jobs' marks are off. Of a worker that dies, every mark is taken off. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: set[int] = set()

    @property
    def ids(self) -> frozenset[int]:
        """Jobs whose messages are to be sent again."""
        with self._lock:
            return frozenset(self._ids)

    def note(self, job_ids: Iterable[int]) -> None:
        """Remember jobs whose messages could not be given back."""
        with self._lock:
            self._ids.update(job_ids)

    def send_again(self, database: Database, beside: Callable[[Connection], object] = lambda _: None) -> int:
        """Take the marks off those that still wait, and forget all once that is committed.

        Args:
            database: Where the marks are.
            beside: What is done before in the same transaction.

        Returns:
            How many jobs still waited.

        Raises:
            DatabaseUnreachableError: The database does not answer; nothing was forgotten.
        """
        ids = self.ids

        def change(c: Connection) -> int:
            beside(c)
            return store.unmark_published(c, sorted(ids))

        count = database.transact(change)
        with self._lock:
            self._ids -= ids
        return count


# kombu makes a worker's connections, and takes no argument for them.
stranded: Final = StrandedMessages()
