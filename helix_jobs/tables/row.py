"""Row: one row of a table, whatever file it came from; BadRow: one that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        number: Where it stands: the line of a text file on which it begins, as an editor counts; the row of a
            worksheet; otherwise its position, from 1.
        values: Column -> value: text, number, boolean, None, or lists and mappings of these; from typed files also
            dates, times and decimals.
        encoded: The row as JSON text, where somebody has made it already; see ``encoded_row``.
    """

    number: int
    values: Mapping[str, Any]
    encoded: bytes | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read or asked about.

    Attributes:
        number: As in ``Row``.
        field: The column at fault, or ``(row)``.
        reason: What is wrong with it.
        remedy: What to do.
        original: The row as a line of JSON, for the file of bad lines.
    """

    number: int
    field: str
    reason: str
    remedy: str
    original: bytes


WHOLE_ROW: Final = "(row)"
_NOT_IN_JSON: Final = (b"NaN", b"Infinity")


def row_json(values: object) -> bytes:
    """A row, or a part of one, as JSON text in ASCII. Dates and times are written as ISO 8601, decimals as text.

    Raises:
        ValueError: A value has no JSON form, such as bytes that are no text.
    """
    try:
        return _ENCODER.encode(values).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def encoded_row(row: Row) -> bytes | BadRow:
    """A row as JSON text; a bad row, which names the column, where a value has no JSON form."""
    if row.encoded is not None:
        return row.encoded
    try:
        return row_json(row.values)
    except ValueError as error:
        for name, value in row.values.items():
            try:
                row_json(value)
            except ValueError:
                return BadRow(row.number, str(name), str(error), "leave the column out, with --select", b"")
        return BadRow(row.number, WHOLE_ROW, str(error), "use plain values, and text for names", b"")


def readable_again(encoded: bytes) -> bytes:
    """The JSON text of a row for the file of bad lines: NaN and infinity are null, as JSON does not have them."""
    if not any(name in encoded for name in _NOT_IN_JSON):
        return encoded
    return row_json(json.loads(encoded, parse_constant=lambda _: None))


def _plain(value: object) -> object:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID | timedelta):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise TypeError("holds bytes that are no text") from None
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"holds a {type(value).__name__}, which has no JSON form")


_ENCODER: Final = json.JSONEncoder(default=_plain)
