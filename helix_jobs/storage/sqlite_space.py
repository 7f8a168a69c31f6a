"""Free pages in SQLite's file, left by removed rows, and how to give them back to the disk.

New databases have ``auto_vacuum=INCREMENTAL`` (``sqlite_engine.py``), so their files can shrink some pages at a time
while workers run. Trade-off: one page in a thousand then holds references between pages, and a batch's rows are more
scattered after a cut. Without this mode only a VACUUM shrinks a file, which locks everybody out and needs room for a
second copy. A file of an older version lacks the mode until it has been rewritten once (``rewrite``).
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import DatabaseUnreachableError

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

    from helix_jobs.storage.database import Database

# At most 8 MB a transaction. It takes fewer pages where they are slow to move (SQLite searches its list of free pages,
# which may be long, for each), so that other writers do not wait long.
PAGES: Final = 2000
_FEWEST_PAGES: Final = 20
_STEP_SECONDS: Final = 0.25
_INCREMENTAL: Final = 2
_WAIT_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class FreeRoom:
    """The free space of the file.

    Attributes:
        bytes: Free bytes; new rows go there first.
        can_be_given_back: Whether they can be cut off in steps.
    """

    bytes: int
    can_be_given_back: bool


def free_room(c: Connection) -> FreeRoom:
    """Read how much of SQLite's file is free."""
    pages, size, mode = (
        int(c.exec_driver_sql(f"PRAGMA {name}").scalar_one()) for name in ("freelist_count", "page_size", "auto_vacuum")
    )
    return FreeRoom(bytes=pages * size, can_be_given_back=mode == _INCREMENTAL)


def give_back(database: Database) -> int:
    """Cut free pages off the file, in steps; returns the bytes cut off: 0 on Postgres, or if cutting is impossible.

    Raises:
        DatabaseUnreachableError: The database stayed locked for too long.
    """
    file = database.sqlite_file
    freed, pages = 0, PAGES
    while file is not None:
        with database.read() as c:
            before = free_room(c)
        if not before.can_be_given_back or not before.bytes:
            break
        # executescript, because SQLite moves one page for each row fetched, and execute would fetch none: the rows have
        # no columns.
        started = time.monotonic()
        _run(database, file, f"PRAGMA incremental_vacuum({pages})")
        seconds = time.monotonic() - started
        pages = max(_FEWEST_PAGES, min(PAGES, int(pages * _STEP_SECONDS / max(seconds, 1e-3))))
        with database.read() as c:
            count = before.bytes - free_room(c).bytes
        if count <= 0:
            break
        freed += count
    return freed


def rewrite(database: Database) -> int:
    """Rewrite the whole file without free pages (VACUUM); from then on it can shrink in steps.

    Everybody else is locked out meanwhile, and the disk needs room for a second copy. Returns the bytes saved.

    Raises:
        DatabaseUnreachableError: The database is in use, or the disk is full.
    """
    file = database.sqlite_file
    if file is None:
        return 0
    before = file.stat().st_size
    _run(database, file, "PRAGMA auto_vacuum=INCREMENTAL; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)")
    return before - file.stat().st_size


def _run(database: Database, file: Path, script: str) -> None:
    connection = sqlite3.connect(file, isolation_level=None, timeout=_WAIT_SECONDS)
    try:
        connection.executescript(script)
    except sqlite3.OperationalError as error:
        raise DatabaseUnreachableError(
            f"database {database.url_redacted} cannot be made smaller ({error}); try again when nobody uses it, and "
            "see that its disk has room"
        ) from error
    finally:
        connection.close()
