"""Rows of CSV and its kin: RFC 4180 with any delimiter, as a stream. A row is never held longer than it is used."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import InputError
from helix_jobs.intake.line_faults import cut, short
from helix_jobs.tables.columns import column_names
from helix_jobs.tables.row import WHOLE_ROW, BadRow, Row, row_json
from helix_jobs.tables.text_form import NAMED_CELLS
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.tables.byte_stream import ByteStream
    from helix_jobs.tables.text_form import TextForm

# Characters of a row, as many as a line of JSON may have bytes.
MAX_ROW_CHARS: Final = 4 * 1024 * 1024
# Bytes that are not in the encoding become halves of surrogate pairs, which are found in the row that has them.
_KEEP_BYTES: Final = "surrogateescape"
_UNDECODED: Final = re.compile("[\udc80-\udcff]")


class DelimitedRows:
    """The rows below a header.

    Args:
        stream: The file.
        form: Its encoding.
        delimiter: The character between columns.

    Attributes:
        columns: The names in the header; a column without one is called ``column_N``.

    Raises:
        InputError: There is no header, or it names a column twice, or is in another encoding.
    """

    def __init__(self, stream: ByteStream, form: TextForm, delimiter: str) -> None:
        self._form = form
        text = io.TextIOWrapper(io.BufferedReader(stream), form.codec, errors=_KEEP_BYTES, newline="")
        self._lines = _Lines(text)
        # Each cell of a row of the greatest size must pass: the limit is one of rows, which ``_Lines`` keeps.
        if csv.field_size_limit() < MAX_ROW_CHARS:
            csv.field_size_limit(MAX_ROW_CHARS)
        self._reader = csv.reader(self._lines, delimiter=delimiter, strict=True)
        try:
            header = next((cells for cells in self._reader if cells and cells != NAMED_CELLS), None)
        except csv.Error as error:
            raise InputError(
                f"the table's header cannot be read ({error}); is a quote not closed, or --delimiter another one?"
            ) from error
        except UnicodeError as error:
            raise _header_of_another_encoding(form) from error
        if header is None:
            raise InputError("the table is empty; its first row names the columns")
        if any(map(_UNDECODED.search, header)):
            raise _header_of_another_encoding(form)
        self.columns = column_names(header)
        self._width = len(header)

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows, numbered by the line on which they begin; those of empty cells only are left out."""
        while True:
            self._lines.begin()
            number = self._lines.count + 1
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield self._broken(number, str(error))
                continue
            if not any(cells):
                continue
            if len(cells) != self._width:
                yield self._bad(
                    number,
                    WHOLE_ROW,
                    f"has {counted(len(cells), 'cell')}, and the header names {self._width:,}",
                    "give each row a cell for every column; a cell that holds the delimiter stands in quotes",
                )
            elif (wrong := self._undecoded(cells)) is not None:
                remedy = "save the table as UTF-8, or name its encoding with --encoding"
                yield self._bad(number, short(wrong), f"holds bytes that are not {self._form.shown}", remedy)
            else:
                yield Row(number, dict(zip(self.columns, cells, strict=True)))

    def _undecoded(self, cells: list[str]) -> str | None:
        """The column of the first cell with bytes that the encoding does not have."""
        if self._lines.is_decoded:
            return None
        return next(
            (name for name, cell in zip(self.columns, cells, strict=True) if _UNDECODED.search(cell)),
            None,
        )

    def _broken(self, number: int, said: str) -> BadRow:
        if "end of data" in said:
            reason = "begins a cell with a quote that is not closed: all lines to the end belong to it"
        else:
            reason = f"cannot be read as a row ({cut(said)})"
        return self._bad(number, WHOLE_ROW, reason, "close the quote; a quote within a cell is written twice")

    def _bad(self, number: int, field: str, reason: str, remedy: str) -> BadRow:
        return BadRow(number, field, reason, remedy, row_json("".join(self._lines.held).rstrip("\r\n")))


def _header_of_another_encoding(form: TextForm) -> InputError:
    return InputError(
        f"the table's header holds bytes that are not {form.shown}, which the table is read as; save the whole table "
        "in one encoding, best as UTF-8, or name its encoding with --encoding"
    )


class _Lines:
    """Lines of text for ``csv``, which asks for as many as a row has.

    Attributes:
        count: Lines taken so far.
        held: The lines of the row at hand.
    """

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.count = 0
        self.held: list[str] = []
        self._chars = 0

    def begin(self) -> None:
        """Forget the last row's lines."""
        self.held.clear()
        self._chars = 0

    @property
    def is_decoded(self) -> bool:
        """Whether the row at hand is all ASCII, and so certainly has no bytes of another encoding."""
        return all(line.isascii() for line in self.held)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next line with its end.

        Raises:
            InputError: The row has become too long; very likely a quote was never closed.
        """
        line = self._text.readline(MAX_ROW_CHARS + 1)
        if not line:
            raise StopIteration
        self._chars += len(line)
        if self._chars > MAX_ROW_CHARS:
            begun = self.count + 1 - len(self.held)
            raise InputError(
                f"line {begun}: the row that begins here is longer than {MAX_ROW_CHARS // 1024**2} MiB; nothing was "
                "enqueued. Shorten it, or close the quote that it opens"
            )
        self.count += 1
        self.held.append(line)
        return line
