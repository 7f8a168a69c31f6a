"""SQLiteFile: checks that a database file and its write-ahead log are still those that this process opened.

When another file replaces an open one, old connections keep the old inode. Without this check, a process would read one
database on its old connections and another on its new ones, and its writes to the old one would be lost.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from helix_jobs.errors import DatabaseReplacedError

if TYPE_CHECKING:
    from pathlib import Path

    _Identity = tuple[int, int]


class SQLiteFile:
    """The file as it was at the first transaction. A check costs two system calls.

    Args:
        path: The database file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log_path = path.with_name(f"{path.name}-wal")
        self._file: _Identity | None = None
        self._log: _Identity | None = None

    def note(self) -> None:
        """Remember the files, unless they are remembered already. Call it while a connection is open and stays open."""
        self._file = self._file or _identity(self._path)
        self._log = self._log or _identity(self._log_path)

    def forget_log(self) -> None:
        """Forget the log once all connections of this process are closed: the last process to close removes it."""
        self._log = None

    def check(self) -> None:
        """Compare the files with those remembered.

        Raises:
            DatabaseReplacedError: A file is gone, or another one has its name.
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
