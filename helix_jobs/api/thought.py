"""Thought: how many tokens the model thought in a batch. Counted once a batch, as every answer is read for it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from helix_jobs.storage.api_batches import reasoning_tokens

if TYPE_CHECKING:
    from datetime import datetime

    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import BatchStatus

_REMEMBERED: Final = 1000


class Thought:
    """Remembers the counts of batches that have ended. Every method may be called by any thread.

    Args:
        database: The database.
    """

    def __init__(self, database: Database) -> None:
        @lru_cache(_REMEMBERED)
        def count(batch_id: str, _finished_at: datetime | None) -> int:
            with database.read() as c:
                return reasoning_tokens(c, batch_id)

        self._count = count

    def tokens(self, status: BatchStatus) -> int:
        """The count of a batch that has ended. A batch that is tried again ends at another time.

        Raises:
            DatabaseUnreachableError: The database does not answer.
        """
        return self._count(status.id, status.finished_at)
