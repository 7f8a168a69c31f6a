"""TableDigest: recognises the rows that were read, so that answers are joined to no other table."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from helix_jobs.tables.row import BadRow, row_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from helix_jobs.tables.row import Row


class TableDigest:
    """Counts and digests rows as they pass.

    Attributes:
        rows: How many have passed.
        is_whole: Whether the table's end was reached.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.is_whole = False
        self._digest = blake2b(digest_size=16)

    def noting(self, rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
        """The same rows."""
        for row in rows:
            self.note(row)
            yield row
        self.is_whole = True

    def note(self, row: Row | BadRow) -> None:
        """Add one row."""
        if isinstance(row, BadRow):
            text = row.original
        else:
            try:
                text = row_json(row.values)
            except ValueError:
                text = b"?"  # it becomes a bad row
        self.rows += 1
        self._digest.update(b"%d:%s\n" % (row.number, text))

    def to_dict(self) -> dict[str, Any]:
        """What is stored with the batch."""
        return {"rows": self.rows, "is_whole": self.is_whole, "digest": self._digest.hexdigest()}
