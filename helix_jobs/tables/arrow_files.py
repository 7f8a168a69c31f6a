"""Rows of one table that lies in several files of Parquet or Arrow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.errors import InputError
from helix_jobs.tables.arrow_rows import PARQUET, ArrowRows
from helix_jobs.tables.row import Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_LONGEST_MAGIC: Final = max(len(PARQUET), 8)


class ArrowFilesRows:
    """The rows of all files, one after the other.

    Args:
        files: The files, at least one.

    Attributes:
        columns: The names.
        schema: Arrow's fields.

    Raises:
        ConfigurationError: pyarrow is not installed.
        InputError: A file is damaged.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        with files[0].open("rb") as stream:
            first = ArrowRows.of_file(stream, _magic(files[0]))
        self.columns, self.schema = first.columns, first.schema

    def rows(self) -> Iterator[Row]:
        """The rows, numbered from 1 over all files.

        Raises:
            InputError: A file is damaged, or has other columns than the first.
        """
        number = 0
        for file in self._files:
            with file.open("rb") as stream:
                part = ArrowRows.of_file(stream, _magic(file))
                if part.columns != self.columns:
                    raise InputError(
                        f"{file.name} has other columns than {self._files[0].name}; name one of them alone"
                    )
                for row in part.rows():
                    number += 1
                    yield Row(number, row.values)


def _magic(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(_LONGEST_MAGIC)
