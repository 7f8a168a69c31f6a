"""Write rows with typed columns as JSON lines, CSV, Parquet or Arrow, as a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.json_line import json_line
from helix_jobs.results.field_kinds import FieldKind, flat, in_json, plain
from helix_jobs.results.file_writers import tables_of, write_cells, write_lines, write_tables
from helix_jobs.tables.arrow_rows import import_pyarrow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from helix_jobs.results.file_writers import ByteSink

    # Column -> its kind, or Arrow's own field where the column comes from a typed table.
    Fields = Mapping[str, Any]

ROW_FORMATS: Final = ("jsonl", "csv", "parquet", "arrow")


def write_rows(rows: Iterable[Mapping[str, Any]], fields: Fields, stream: ByteSink, fmt: str) -> int:
    """Write rows in one of ``ROW_FORMATS`` and return how many.

    Args:
        rows: Taken one by one, or as many as fit into a row group.
        fields: The columns.
        stream: Where to.
        fmt: The format.

    Raises:
        ConfigurationError: The format needs pyarrow, which is not installed, or cannot hold a value of the table.
    """
    if fmt == "jsonl":
        return write_lines(({name: in_json(value, name) for name, value in row.items()} for row in rows), stream)
    if fmt == "csv":
        return write_cells(fields, ([flat(plain(row.get(name), name)) for name in fields] for row in rows), stream)
    schema = arrow_schema(fields)
    return write_tables(arrow_tables(rows, fields, schema), schema, stream, fmt)


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
    """The rows as Arrow tables of limited size."""
    return tables_of(
        ({name: _cell(row.get(name), name, field) for name, field in fields.items()} for row in rows), schema
    )


def _cell(value: Any, name: str, field: object) -> Any:  # noqa: ANN401  (any value of a table)
    """A value as Arrow takes it: one of a typed column as it is."""
    if not isinstance(field, FieldKind):
        return value
    known = plain(value, name)
    return known if known is None or field is not FieldKind.JSON else json_line(known)
