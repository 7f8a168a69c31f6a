"""Write rows with typed columns as JSON lines, CSV, Parquet or Arrow, as a stream."""

from __future__ import annotations

import csv
import io
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.json_line import json_line
from helix_jobs.results.field_kinds import FieldKind, flat, plain
from helix_jobs.tables.arrow_rows import import_pyarrow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from helix_jobs.results.export import ByteSink

    # Column -> its kind, or Arrow's own field where the column comes from a typed table.
    Fields = Mapping[str, Any]

ROW_FORMATS: Final = ("jsonl", "csv", "parquet", "arrow")
_GROUP: Final = 1000


def write_rows(rows: Iterable[Mapping[str, Any]], fields: Fields, stream: ByteSink, fmt: str) -> int:
    """Write rows in one of ``ROW_FORMATS`` and return how many.

    Args:
        rows: Taken one by one, or a thousand at a time.
        fields: The columns.
        stream: Where to.
        fmt: The format.

    Raises:
        ConfigurationError: The format needs pyarrow, which is not installed.
    """
    if fmt == "jsonl":
        return _write_jsonl(rows, stream)
    if fmt == "csv":
        return _write_csv(rows, fields, stream)
    return _write_arrow(rows, fields, stream, fmt)


def _write_jsonl(rows: Iterable[Mapping[str, Any]], stream: ByteSink) -> int:
    count = 0
    for count, row in enumerate(rows, start=1):  # noqa: B007  (counts)
        stream.write(json_line({name: plain(value) for name, value in row.items()}).encode() + b"\n")
    return count


def _write_csv(rows: Iterable[Mapping[str, Any]], fields: Fields, stream: ByteSink) -> int:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(fields)
    count = 0
    for count, row in enumerate(rows, start=1):  # noqa: B007  (counts)
        writer.writerow([flat(plain(row.get(name))) for name in fields])
        stream.write(buffer.getvalue().encode())
        buffer.seek(0)
        buffer.truncate()
    stream.write(buffer.getvalue().encode())
    return count


def _write_arrow(rows: Iterable[Mapping[str, Any]], fields: Fields, stream: ByteSink, fmt: str) -> int:
    pyarrow = import_pyarrow("Parquet and Arrow files")
    sink = pyarrow.PythonFile(stream, mode="w")
    schema = arrow_schema(fields)
    if fmt == "parquet":
        from pyarrow import parquet

        writer = parquet.ParquetWriter(sink, schema, compression="zstd")
    else:
        writer = pyarrow.ipc.new_file(sink, schema)
    count = 0
    with writer:
        for table in arrow_tables(rows, fields, schema):
            writer.write_table(table)
            count += table.num_rows
    return count


def arrow_schema(fields: Fields) -> Any:  # noqa: ANN401  (pyarrow is untyped)
    """Arrow's schema of the columns."""
    pyarrow = import_pyarrow("Parquet and Arrow files")
    types = {
        FieldKind.STRING: pyarrow.string(),
        FieldKind.INT: pyarrow.int64(),
        FieldKind.DOUBLE: pyarrow.float64(),
        FieldKind.BOOL: pyarrow.bool_(),
        FieldKind.STRINGS: pyarrow.list_(pyarrow.string()),
        FieldKind.NUMBERS: pyarrow.list_(pyarrow.float64()),
        FieldKind.JSON: pyarrow.string(),
    }
    return pyarrow.schema(
        [
            pyarrow.field(name, types[field]) if isinstance(field, FieldKind) else field.with_name(name)
            for name, field in fields.items()
        ]
    )


def arrow_tables(rows: Iterable[Mapping[str, Any]], fields: Fields, schema: Any) -> Iterator[Any]:  # noqa: ANN401  (pyarrow is untyped)
    """The rows as Arrow tables of a thousand rows each."""
    pyarrow = import_pyarrow("Parquet and Arrow files")
    as_text = {name for name, field in fields.items() if field is FieldKind.JSON}
    as_plain = {name for name, field in fields.items() if isinstance(field, FieldKind)} - as_text
    rest = iter(rows)
    while group := list(islice(rest, _GROUP)):
        columns = {
            name: [_cell(row.get(name), text=name in as_text, is_plain=name in as_plain) for row in group]
            for name in fields
        }
        yield pyarrow.Table.from_pydict(columns, schema=schema)


def _cell(value: Any, *, text: bool, is_plain: bool) -> Any:  # noqa: ANN401  (any value of a table)
    if text:
        return None if value is None else json_line(plain(value))
    return plain(value) if is_plain else value
