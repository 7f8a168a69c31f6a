"""A worker takes the marks off the jobs whose messages it could not give back, so that these are sent again.

Of a worker that dies, every mark is taken off.

Trade-off: a broker that has taken a message back without its answer getting through carries it twice; a duplicate
finds nothing to do. A stop over a sound connection costs none, which taking off every mark at each stop would.
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
    """Take the marks off those that still wait, and forget all once that is committed.

    Args:
        stranded: The jobs.
        database: Where the marks are.
        beside: What is done before in the same transaction.

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
