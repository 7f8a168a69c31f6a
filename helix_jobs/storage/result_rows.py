"""Result rows, stored together: those of a transaction are written by one statement right before its commit.

A hundred jobs finished in one transaction then cost one insert of a hundred rows, a third of what a hundred inserts
cost. ``Database`` calls ``flush`` and ``discard``. A row that the database refuses fails the whole transaction, so the
group commit writer repeats its functions one by one, and only the row's own job fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import insert

from helix_jobs.storage.schema import results

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

# The key in ``Connection.info`` of the rows that wait for the commit.
_PENDING: Final = "helix_result_rows"
_INSERT: Final = insert(results)


def add(c: Connection, row: Mapping[str, Any]) -> None:
    """Store a row in this transaction.

    Args:
        c: A write transaction.
        row: A value for every column of ``results``.
    """
    c.info.setdefault(_PENDING, []).append(row)


def flush(c: Connection) -> None:
    """Write the rows: before the commit, and before results are read in the same transaction."""
    if rows := c.info.pop(_PENDING, None):
        c.execute(_INSERT, rows)


def discard(c: Connection) -> None:
    """Forget the rows; the transaction was rolled back."""
    c.info.pop(_PENDING, None)
