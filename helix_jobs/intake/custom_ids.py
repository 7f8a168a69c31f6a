"""CustomIds: the custom_ids of one input; each may occur on one line only."""

from __future__ import annotations

import sqlite3
import sys
from typing import Final

from helix_jobs.errors import ConfigurationError, InvalidFieldError

_FOLDER_VARIABLE: Final = "TMP" if sys.platform == "win32" else "SQLITE_TMPDIR"


class CustomIds:
    """The set of custom_ids seen so far, with the line of each.

    Trade-off: a private temporary SQLite table instead of a Python set costs about two microseconds a line, but keeps
    memory flat at a million ids (SQLite spills the table to a file that vanishes when it is closed).
    """

    def __init__(self) -> None:
        # The empty name means SQLite's private temporary database: no other reader, no durability needed.
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("PRAGMA cache_size = -16384")
        self._connection.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID")
        self._connection.execute("BEGIN")

    def add(self, custom_id: str, line: int) -> None:
        """Remember the id.

        Raises:
            InvalidFieldError: The id occurred before; the reason names its line.
            ConfigurationError: There is no room for the file of the ids.
        """
        try:
            if self._connection.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (custom_id, line)).rowcount:
                return
            (first,) = self._connection.execute("SELECT line FROM seen WHERE id = ?", (custom_id,)).fetchone()
        except sqlite3.OperationalError as error:
            # SQLite chooses the directory and does not tell it.
            raise ConfigurationError(
                f"line {line}: custom_id: the ids so far cannot be kept in a temporary file ({error}); free some space "
                f"where temporary files are, or name a directory that has some in {_FOLDER_VARIABLE}"
            ) from error
        raise InvalidFieldError("custom_id", f"is the one of line {first}", "give each line its own")

    def close(self) -> None:
        """Forget all ids."""
        self._connection.close()
