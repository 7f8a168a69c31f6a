"""TableSource: a table as a source of lines, for a submission or a preview."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

from helix_jobs.errors import InputError, InvalidFieldError
from helix_jobs.intake.line_faults import short
from helix_jobs.intake.raw_lines import MAX_LINE_BYTES, RawLine
from helix_jobs.new_job import NewJob
from helix_jobs.tables.columns import no_such_column
from helix_jobs.tables.digest import TableDigest
from helix_jobs.tables.opened_table import open_table
from helix_jobs.tables.row import WHOLE_ROW, BadRow, Row, encoded_row, readable_again, row_json
from helix_jobs.tables.row_renderer import DEFAULT_LIMITS, AskedRow, RenderLimits, RowRenderer
from helix_jobs.tables.shuffle import shuffled
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from types import TracebackType

    from helix_jobs.errors import BadLine
    from helix_jobs.intake.lines import LineReader
    from helix_jobs.tables.ask import TableAsk

_TOO_LONG: Final = ("is longer than 4 MiB as a line", "shorten it")


class TableSource:
    """The lines that a table and templates make. Reads the table once, and never holds it.

    Args:
        source: As for ``open_table``.
        ask: What is asked of it.
        on_reading: Called with how the table is read, once that is known.
        limits: Limits of filling templates in.

    Attributes:
        name: The table's path.

    Raises:
        ConfigurationError: A library for the format is not installed.
        InputError: The table cannot be opened.
    """

    def __init__(
        self,
        source: object,
        ask: TableAsk,
        on_reading: Callable[[str], None] | None = None,
        limits: RenderLimits = DEFAULT_LIMITS,
    ) -> None:
        self._ask = ask
        self._limits = limits
        self._stack = ExitStack()
        self._digest = TableDigest()
        self._rejects = _LateSink()
        self._table = self._stack.enter_context(open_table(source, ask.reading, self._rejects))
        self.name = self._table.name
        if on_reading is not None:
            on_reading(self._table.reading)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self, reader: LineReader) -> Iterator[NewJob | BadLine]:
        """Yield the lines in the order in which the rows come.

        Raises:
            InputError: The table cannot be read further, or a template cannot be used.
        """
        self._rejects.sink = reader.rejects
        return map(self._told, reader.read_raw(self._lines()))

    def position(self) -> tuple[int | None, int | None]:
        """Bytes read and in total, of a plain file."""
        return self._table.position()

    def facts(self) -> dict[str, Any]:
        """What was read, to be stored with the batch; complete when all lines have been read."""
        return {"table": self._digest.to_dict()}

    def _lines(self) -> Generator[RawLine, None, None]:
        self._check_columns()
        line = self._ask.line()
        rows: Iterable[Row | BadRow] = self._digest.noting(self._table.rows())
        if self._ask.select is not None:
            rows = map(self._selected, rows)
        with ExitStack() as stack:
            renderer = None
            if line is not None or self._ask.where is not None:
                renderer = stack.enter_context(RowRenderer(self._ask.where, line, self._limits))
            if self._ask.where is not None and renderer is not None:
                rows = _kept(renderer.ask("keep", rows))
            if self._ask.shuffle is not None:
                rows = shuffled(rows, self._ask.shuffle, self._ask.limit)
            elif self._ask.limit is not None:
                rows = _first(rows, self._ask.limit)
            if line is None or renderer is None:
                lines = map(_row_as_line, rows)
            else:
                lines = map(self._filled_line, renderer.ask("fill", rows))
            first = next(lines, None)
            if first is None:
                raise self._no_row()
            yield first
            yield from lines

    def _told(self, line: NewJob | BadLine) -> NewJob | BadLine:
        """A bad line with the name that the person knows: a row's ``custom_id`` comes from the column of the ids."""
        if self._ask.id is None or isinstance(line, NewJob):
            return line
        own, *others = (
            replace(fault, others=(), field=short(self._ask.id)) if fault.field == "custom_id" else fault
            for fault in line.faults
        )
        return replace(own, others=tuple(others))

    def _no_row(self) -> InputError:
        if not self._digest.rows:
            return InputError("the table has columns, and no rows below them; name a table with rows")
        read = counted(self._digest.rows, "row")
        return InputError(f"--where is true of none of the table's {read}; correct it, or leave it out")

    def _check_columns(self) -> None:
        """Refuse a table whose every row lacks a column that an option names."""
        columns = self._table.columns
        if columns is None:
            return
        select, identity = self._ask.select, self._ask.id
        wanted = [] if select is None else [("--select", column) for column in select.sources.values()]
        if identity is not None:
            wanted.append(("--id", identity))
        selected = columns if select is None else tuple(select.sources)
        for option, column in wanted:
            there = selected if option == "--id" else columns
            if column not in there:
                what = "--select keeps" if option == "--id" and column in columns else "the table has"
                raise InputError(f"{option} {short(column)}: {what} no such column; {no_such_column(there, column)}")

    def _selected(self, row: Row | BadRow) -> Row | BadRow:
        select = self._ask.select
        if isinstance(row, BadRow) or select is None:
            return row
        if (column := select.missing(row.values)) is not None:
            return _bad(row, column, "is no column of the row", no_such_column(row.values, column))
        return Row(row.number, select.of(row.values))

    def _filled_line(self, asked: AskedRow | BadRow) -> RawLine:
        if isinstance(asked, BadRow):
            return _raw_bad(asked)
        row, text, original = asked.row, str(asked.answer), asked.encoded
        column = self._ask.id
        if column is not None:
            if (value := row.values.get(column)) in (None, ""):
                reason = "has no value" if column in row.values else "is no column of the row"
                return _raw_bad(_bad(row, column, reason, "give each row an id of its own, or leave out --id"))
            text = f'{{"custom_id": {_as_text(value)}, {text[1:]}'
        return _raw(row, text.encode(), original)


class _LateSink:
    """Passes bytes on to a sink that is known later."""

    sink: Any = None

    def write(self, data: bytes, /) -> object:
        """Append bytes."""
        return None if self.sink is None else self.sink.write(data)


def _first(rows: Iterable[Row | BadRow], limit: int) -> Iterator[Row | BadRow]:
    """The rows up to the limit, bad ones not counted."""
    left = limit
    for row in rows:
        yield row
        left -= isinstance(row, Row)
        if not left:
            return


def _kept(asked: Iterable[AskedRow | BadRow]) -> Iterator[Row | BadRow]:
    for one in asked:
        if isinstance(one, BadRow):
            yield one
        elif one.answer:
            yield one.row


def _row_as_line(row: Row | BadRow) -> RawLine:
    """A row whose columns are the fields of a line; empty cells are fields that are not given."""
    if isinstance(row, BadRow):
        return _raw_bad(row)
    given = {name: value for name, value in row.values.items() if value is not None and value != ""}
    text = encoded_row(row)
    if isinstance(text, BadRow):
        return _raw_bad(text)
    return _raw(row, text if len(given) == len(row.values) else row_json(given), text)


def _as_text(value: object) -> str:
    """JSON text of a value of ``custom_id``: the value as the row's own JSON has it, and so the rejects file."""
    written = row_json(value).decode()
    return written if written.startswith('"') else row_json(written).decode()


def _raw(row: Row, data: bytes, original: bytes) -> RawLine:
    if len(data) > MAX_LINE_BYTES:
        return _raw_bad(BadRow(row.number, WHOLE_ROW, *_TOO_LONG, readable_again(original)))
    return RawLine(row.number, data, original=readable_again(original))


def _raw_bad(bad: BadRow) -> RawLine:
    return RawLine(bad.number, b"", InvalidFieldError(bad.field, bad.reason, bad.remedy), bad.original)


def _bad(row: Row, field: str, reason: str, remedy: str) -> BadRow:
    text = encoded_row(row)
    return BadRow(row.number, field, reason, remedy, readable_again(text) if isinstance(text, bytes) else b"")
