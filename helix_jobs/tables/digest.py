"""TableDigest: recognises the rows that were read, so that answers are joined to no other table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.tables.row import BadRow, Row, encoded_row, row_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


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
        """The same rows, with the JSON text that was made of them."""
        for row in rows:
            yield self.note(row)
        self.is_whole = True

    def note(self, row: Row | BadRow) -> Row | BadRow:
        """Add one row; returns it, with the JSON text that was made of it."""
        if isinstance(row, BadRow):
            text = row.original
        elif isinstance(encoded := encoded_row(row), bytes):
            row, text = Row(row.number, row.values, encoded), encoded
        else:
            text = _by_values(row.values)
        self.rows += 1
        self._digest.update(b"%d:%s\n" % (row.number, text))
        return row

    def to_dict(self) -> dict[str, Any]:
        """What is stored with the batch."""
        return {"rows": self.rows, "is_whole": self.is_whole, "digest": self._digest.hexdigest()}


def _by_values(values: Mapping[str, Any]) -> bytes:
    """Tells rows apart that have no JSON form, as those of a column of pictures, which ``--select`` may leave out."""
    pieces = []
    for name, value in values.items():
        try:
            pieces.append(_RECOGNISED.encode([str(name), value]))
        except (ValueError, TypeError, RecursionError):
            pieces.append(_RECOGNISED.encode([str(name), {"type": type(value).__name__}]))
    return ",".join(pieces).encode()


def _recognised(value: object) -> object:
    """What stands for a value that JSON does not know."""
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, Mapping):
        return dict(value)
    try:
        return json.loads(row_json(value))
    except ValueError:
        return {"type": type(value).__name__}


_RECOGNISED: Final = json.JSONEncoder(default=_recognised)
