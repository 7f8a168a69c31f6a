"""A worker removes the published marks of jobs whose messages it could not give back, so that these are sent again.

When a worker dies, every mark is removed.

Trade-off: if the broker took a message back but its answer was lost, it carries the message twice; the duplicate is
harmless. Removing every mark at each stop would make duplicates over a sound connection too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from helix_jobs.storage import publishing

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from helix_jobs.broker.stranded_messages import StrandedMessages
    from helix_jobs.storage.database import Database


def send_again(
    stranded: StrandedMessages, database: Database, beside: Callable[[Connection], object] = lambda _: None
) -> int:
    """Remove the marks of jobs that still wait, and forget all stranded jobs once that is committed.

    Args:
        stranded: The jobs.
        database: Holds the marks.
        beside: Work done first, in the same transaction.

    Returns:
        How many jobs still waited.

    Raises:
        DatabaseUnreachableError: The database does not answer; nothing was forgotten.
    """
    ids = stranded.ids

    def change(c: Connection) -> int:
        beside(c)
        return publishing.unmark_published(c, sorted(ids))

    count = database.transact(change)
    stranded.forget(ids)
    return count
