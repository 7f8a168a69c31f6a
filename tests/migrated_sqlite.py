"""Migrated SQLite databases without a migration, which takes longer than most tests that need its result."""

from __future__ import annotations

import secrets
import sqlite3
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path

from helix_jobs.files import make_private_directory, write_private
from helix_jobs.storage.database import Database
from helix_jobs.storage.migration import ensure_schema


def lay_database(file: Path) -> None:
    """Put an empty database of the newest schema there, as its first use would have left it."""
    make_private_directory(file.parent)
    write_private(file, _migrated())
    with closing(sqlite3.connect(file)) as connection, connection:
        # Two installations must not have one name.
        connection.execute("UPDATE installation SET id = ?", (secrets.token_hex(6),))


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "helix.db")
        database = Database(f"sqlite:///{file}")
        ensure_schema(database)
        database.dispose()  # the write-ahead log goes into the file
        return file.read_bytes()
