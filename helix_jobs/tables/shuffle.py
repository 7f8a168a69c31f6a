"""Rows in an order that a seed decides, whatever their number: they wait in a temporary file, not in memory."""

from __future__ import annotations

import json
import sqlite3
from hashlib import blake2b
from typing import TYPE_CHECKING

from helix_jobs.errors import ConfigurationError
from helix_jobs.tables.row import BadRow, Row, encoded_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def shuffled(rows: Iterable[Row | BadRow], seed: int, limit: int | None) -> Iterator[Row | BadRow]:
    """The rows in the order of a keyed hash of their numbers; bad rows come first, as they are found.

    A smaller limit gives the beginning of the same order, so a trial of a hundred rows is part of one of a thousand.

    Raises:
        ConfigurationError: There is no room for the temporary file.
    """
    # The empty name means SQLite's private temporary database, which vanishes when it is closed.
    connection = sqlite3.connect("", isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("CREATE TABLE held (place BLOB PRIMARY KEY, number INTEGER, row BLOB) WITHOUT ROWID")
        connection.execute("BEGIN")
        for row in rows:
            text = row if isinstance(row, BadRow) else encoded_row(row)
            if isinstance(text, BadRow):
                yield text
                continue
            place = blake2b(f"{seed}:{row.number}".encode(), digest_size=16).digest()
            connection.execute("INSERT INTO held VALUES (?, ?, ?)", (place, row.number, text))
        query = "SELECT number, row FROM held ORDER BY place LIMIT ?"
        for number, values in connection.execute(query, (-1 if limit is None else limit,)):
            yield Row(number, json.loads(values), values)
    except sqlite3.OperationalError as error:
        raise ConfigurationError(
            f"the rows cannot be kept in a temporary file to shuffle them ({error}); free some space where temporary "
            "files are"
        ) from error
    finally:
        connection.close()
