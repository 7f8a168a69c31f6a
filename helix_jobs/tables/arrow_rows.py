"""Rows of Parquet, of Arrow's two file formats, and of data frames, by pyarrow: a batch of rows at a time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from helix_jobs.errors import ConfigurationError, InputError
from helix_jobs.intake.line_faults import cut, short
from helix_jobs.tables.columns import column_names
from helix_jobs.tables.row import Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

# Rows that are unpacked together.
_BATCH: Final = 1000
PARQUET: Final = b"PAR1"
ARROW_FILE: Final = b"ARROW1"
# The first message of Arrow's streaming format, as Hugging Face's data sets have it on disk.
ARROW_STREAM: Final = b"\xff\xff\xff\xff"
# A data frame hands its columns over by this method, without its library being imported here.
FRAME_METHOD: Final = "__arrow_c_stream__"
# pandas adds such columns for an index that has no name; nobody has made them.
_INDEX_OF_PANDAS: Final = re.compile(r"__index_level_\d+__")


class ArrowRows:
    """The rows of record batches, without columns that pandas has added for its index.

    Args:
        schema: Arrow's schema.
        batches: The batches.

    Attributes:
        schema: Arrow's fields of these columns, for whoever writes such rows again.
        columns: The names.

    Raises:
        InputError: Two columns have the same name.
    """

    def __init__(self, schema: Any, batches: Iterator[Any]) -> None:  # noqa: ANN401  (pyarrow is untyped)
        self._places = [place for place, name in enumerate(schema.names) if not _INDEX_OF_PANDAS.fullmatch(name)]
        self.schema = [schema.field(place) for place in self._places]
        self.columns = column_names([field.name for field in self.schema])
        self._batches = batches

    @classmethod
    def of_file(cls, stream: BinaryIO, first: bytes) -> ArrowRows:
        """The rows of a file in which one can seek.

        Args:
            stream: The file.
            first: Its first bytes, which tell the format.

        Raises:
            ConfigurationError: pyarrow is not installed.
            InputError: The file is damaged.
        """
        pyarrow = import_pyarrow("Parquet and Arrow files")
        try:
            if first.startswith(PARQUET):
                from pyarrow import parquet

                file = parquet.ParquetFile(stream)
                return cls(file.schema_arrow, _sound(pyarrow, file.iter_batches(batch_size=_BATCH)))
            if first.startswith(ARROW_FILE):
                reader = pyarrow.ipc.open_file(stream)
                batches = (reader.get_batch(place) for place in range(reader.num_record_batches))
                return cls(reader.schema, _sound(pyarrow, batches))
            reader = pyarrow.ipc.open_stream(stream)
            return cls(reader.schema, _sound(pyarrow, reader))
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged() from error

    @classmethod
    def of_frame(cls, frame: object) -> ArrowRows:
        """The rows of a data frame that has Arrow's interface (pandas, polars, DuckDB, pyarrow).

        Raises:
            ConfigurationError: pyarrow is not installed.
        """
        pyarrow = import_pyarrow("data frames")
        reader = pyarrow.RecordBatchReader.from_stream(frame)
        return cls(reader.schema, _sound(pyarrow, reader))

    def rows(self) -> Iterator[Row]:
        """The rows, numbered from 1.

        Raises:
            InputError: Python has no form for a value, such as a time of day in the year 200,000.
        """
        number = 0
        for batch in self._batches:
            for start in range(0, batch.num_rows, _BATCH):
                part = batch.slice(start, _BATCH)
                columns = [
                    _unpacked(part.column(place), field, number + 1)
                    for place, field in zip(self._places, self.schema, strict=True)
                ]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield Row(number, dict(zip(self.columns, values, strict=True)))


def is_arrow(first: bytes) -> bool:
    """Whether a file's first bytes are those of Parquet or of one of Arrow's formats."""
    return first.startswith((PARQUET, ARROW_FILE, ARROW_STREAM))


def import_pyarrow(what: str) -> ModuleType:
    """pyarrow, imported when it is needed.

    Args:
        what: What needs it, for the error.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.ipc
    except ImportError as error:
        raise ConfigurationError(
            f'{what} need pyarrow, which is not installed; run pip install -e ".[tables]" in the clone'
        ) from error
    module: ModuleType = pa
    return module


def _unpacked(column: Any, field: Any, first_row: int) -> list[Any]:  # noqa: ANN401  (pyarrow is untyped)
    """The values of a part of a column.

    Args:
        column: The part.
        field: Arrow's field of the column.
        first_row: The number of its first row.

    Raises:
        InputError: Python has no form for one of them.
    """
    try:
        values: list[Any] = column.to_pylist()
    except Exception as error:  # of a dozen kinds: Arrow's, and those of Python's dates, numbers and texts
        row = next((place for place, value in enumerate(column, first_row) if not _has_form(value)), first_row)
        raise InputError(
            f"row {row}: the column {short(field.name)} ({cut(str(field.type))}) has a value that cannot be read here "
            f"({cut(str(error))}); write the column as text or with another type, or leave it out of the file"
        ) from error
    return values


def _has_form(value: Any) -> bool:  # noqa: ANN401  (pyarrow is untyped)
    try:
        value.as_py()
    except Exception:  # noqa: BLE001  (as above)
        return False
    return True


def _sound(pyarrow: ModuleType, batches: Any) -> Iterator[Any]:  # noqa: ANN401  (pyarrow is untyped)
    """The batches; an error of Arrow's becomes one of the input."""
    try:
        yield from batches
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged() from error


def _damaged() -> InputError:
    return InputError("the table is Parquet or Arrow by its first bytes, and is damaged or cut short; make it again")
