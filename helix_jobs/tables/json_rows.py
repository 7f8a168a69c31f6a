"""Rows of JSON lines: one object a line, whose members are the columns; rows may have different ones."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.file_formats import open_lines
from helix_jobs.intake.line_faults import kind
from helix_jobs.intake.raw_lines import split
from helix_jobs.intake.strict_json import decode
from helix_jobs.tables.row import WHOLE_ROW, BadRow, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.intake.raw_lines import RawLine, RejectSink
    from helix_jobs.tables.byte_stream import ByteStream


class JsonRows:
    """The rows of a stream of JSON lines, read by the rules of lines of requests.

    Args:
        stream: The file.
        name: The path, for the command in an error message; None for a pipe.
        rejects: Receives the tail of a line that is too long to hold.

    Attributes:
        columns: None: each row has its own.

    Raises:
        InputError: The file holds no lines of JSON.
    """

    columns = None

    def __init__(self, stream: ByteStream, name: str | None, rejects: RejectSink | None = None) -> None:
        self._lines = open_lines(io.BufferedReader(stream), name)
        self._rejects = rejects

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows, numbered by their lines."""
        for raw in split(self._lines, self._rejects):
            try:
                values = _members(raw)
            except InvalidFieldError as error:
                yield BadRow(raw.number, error.field, error.reason, error.remedy, raw.data)
            else:
                yield Row(raw.number, values)


def _members(raw: RawLine) -> dict[str, Any]:
    if raw.refusal is not None:
        raise raw.refusal
    values = decode(raw.data, first=raw.number == 1)
    if not isinstance(values, dict):
        raise InvalidFieldError(WHOLE_ROW, f"is {kind(values)}, not an object", "give one object a line")
    return values
