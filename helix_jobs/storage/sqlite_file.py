"""SQLiteFile: whether a database file and its write-ahead log are still the ones this process opened.

An open file goes on under its old name's inode when another is put in its place. A process that does not look would
read one database on its old connections and another on its new ones, and what it writes would be nobody's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from helix_jobs.errors import DatabaseReplacedError

if TYPE_CHECKING:
    from pathlib import Path

    _Identity = tuple[int, int]


class SQLiteFile:
    """One file as it was at the first transaction. Looking costs two system calls.

    Args:
        path: The database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log_path = path.with_name(f"{path.name}-wal")
        self._file: _Identity | None = None
        self._log: _Identity | None = None

    def note(self) -> None:
        """Remember what is there, if nothing is remembered yet. For when a connection is open, and stays open."""
        self._file = self._file or _identity(self._path)
        self._log = self._log or _identity(self._log_path)

    def forget_log(self) -> None:
        """All connections of this process are closed; the last process to do so removes the log rightly."""
        self._log = None

    def check(self) -> None:
        """Compare what is there with what is remembered.

        Raises:
            DatabaseReplacedError: It is gone, or another file has its name.
        """
        for path, noted in ((self._path, self._file), (self._log_path, self._log)):
            if noted is None or (found := _identity(path)) == noted:
                continue
            what = "was removed" if found is None else "was replaced by another file"
            raise DatabaseReplacedError(
                f"database sqlite:///{self._path}: {path.name} {what} while it was in use, so what is written now "
                "would be lost; stop everything that uses it before it is moved or restored, then start again"
            )


def _identity(path: Path) -> _Identity | None:
    try:
        found = os.stat(path)  # noqa: PTH116  (twice a transaction: no object for each)
    except OSError:
        return None
    return found.st_dev, found.st_ino
