"""How rows become a file: lines of JSON, cells of CSV, tables of Arrow. Never more than a row group is held."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any, Final, Protocol

from helix_jobs.json_line import json_line
from helix_jobs.tables.arrow_rows import import_pyarrow

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

# A row group ends when its values take so much memory: rows of a number are many, rows of texts or log probabilities
# may have megabytes each.
ROW_GROUP_BYTES: Final = 1 << 22
# A value's own memory, without its characters.
_VALUE_BYTES: Final = 64
_TEXTS: Final = frozenset({str, bytes})
_NESTED: Final = frozenset({list, dict})


class ByteSink(Protocol):
    """A binary stream to write to."""

    def write(self, data: bytes, /) -> object:
        """Append bytes."""
        ...


def write_lines(rows: Iterable[Mapping[str, Any]], stream: ByteSink) -> int:
    """Write one JSON object a line, UTF-8; returns how many."""
    count = 0
    for count, row in enumerate(rows, start=1):  # noqa: B007  (counts)
        stream.write(json_line(row).encode() + b"\n")
    return count


def write_cells(header: Iterable[str], rows: Iterable[Iterable[Any]], stream: ByteSink) -> int:
    """Write RFC 4180 in UTF-8 with a header; absent values are empty. Returns how many rows.

    Trade-off: cells are written unchanged. A spreadsheet may read a cell that starts with ``=`` as a formula, but any
    other reader gets the model's own text.
    """
    # csv writes text; emptying the buffer after each row keeps only one row in memory.
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)

    def flush() -> None:
        stream.write(buffer.getvalue().encode())
        buffer.seek(0)
        buffer.truncate()

    writer.writerow(header)
    count = 0
    for count, cells in enumerate(rows, start=1):  # noqa: B007  (counts)
        writer.writerow(cells)
        flush()
    flush()
    return count


def write_tables(tables: Iterable[Any], schema: Any, stream: ByteSink, fmt: str) -> int:  # noqa: ANN401  (pyarrow is untyped)
    """Write Arrow tables of one schema as Zstandard-compressed ``parquet``, or as ``arrow``; returns how many rows.

    Raises:
        ConfigurationError: pyarrow is not installed.
    """
    pyarrow = import_pyarrow("Parquet and Arrow files")
    sink = pyarrow.PythonFile(stream, mode="w")
    if fmt == "parquet":
        from pyarrow import parquet

        writer = parquet.ParquetWriter(sink, schema, compression="zstd")
    else:
        writer = pyarrow.ipc.new_file(sink, schema)
    count = 0
    with writer:
        for table in tables:
            writer.write_table(table)
            count += table.num_rows
    return count


def tables_of(rows: Iterable[Mapping[str, Any]], schema: Any) -> Iterator[Any]:  # noqa: ANN401  (pyarrow is untyped)
    """Rows as Arrow tables, each a row group of limited size.

    Raises:
        ConfigurationError: pyarrow is not installed.
    """
    pyarrow = import_pyarrow("Parquet and Arrow files")
    for group in row_groups(rows):
        yield pyarrow.Table.from_pylist(group, schema=schema)


def row_groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Rows in groups of limited size; one row may exceed it.

    Trade-off: larger groups compress a little better and are read faster; but a group is held until it is written, and
    whoever reads along a pipe waits for it.
    """
    group: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += _size(row.values())
        if size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _size(values: Collection[Any]) -> int:
    """Bytes of some values, roughly. By exact type: this loop sees every value of an export."""
    size = _VALUE_BYTES * len(values)
    for value in values:
        kind = type(value)
        if kind in _TEXTS:
            size += len(value)
        elif kind in _NESTED:
            size += _size(value if kind is list else value.values())
    return size
