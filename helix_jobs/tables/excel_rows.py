"""Rows of one worksheet of an Excel workbook, by openpyxl, which reads row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Final
from zipfile import BadZipFile

from helix_jobs.errors import ConfigurationError, InputError
from helix_jobs.intake.line_faults import cut, short
from helix_jobs.tables.columns import column_names
from helix_jobs.tables.row import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

ZIP: Final = b"PK\x03\x04"
_SHOWN: Final = 10


class ExcelRows:
    """The rows below a worksheet's header. Of formulas the values count that Excel has stored.

    Args:
        stream: The file, in which one can seek.
        sheet: The worksheet's name; None for the first one.

    Attributes:
        columns: The names in the header; a column without one is called ``column_N``.
        sheet: The worksheet's name.

    Raises:
        ConfigurationError: openpyxl is not installed.
        InputError: It is no workbook, or has no such worksheet, or the worksheet is empty.
    """

    def __init__(self, stream: BinaryIO, sheet: str | None = None) -> None:
        try:
            from openpyxl import load_workbook
        except ImportError as error:
            raise ConfigurationError(
                'Excel workbooks need openpyxl, which is not installed; run pip install -e ".[tables]" in the clone'
            ) from error
        try:
            self._workbook = load_workbook(stream, read_only=True, data_only=True)
        except (BadZipFile, KeyError, ValueError, OSError, TypeError) as error:
            raise InputError(
                "the input is a ZIP archive and no Excel workbook that can be read; unpack it, or save it as .xlsx"
            ) from error
        names = self._workbook.sheetnames
        if sheet is not None and sheet not in names:
            raise InputError(
                f"the workbook has no sheet {short(sheet)!r}; it has {cut(', '.join(map(short, names[:_SHOWN])))}"
            )
        self.sheet = names[0] if sheet is None else sheet
        self._rows = enumerate(self._workbook[self.sheet].iter_rows(values_only=True), start=1)
        header = next((cells for _, cells in self._rows if any(cell is not None for cell in cells)), None)
        if header is None:
            raise InputError(f"the sheet {short(self.sheet)!r} is empty; its first row names the columns")
        # A sheet is often wider than its table: formats reach into empty columns.
        last = max(place for place, cell in enumerate(header, start=1) if cell is not None)
        self.columns = column_names(header[:last])

    def rows(self) -> Iterator[Row]:
        """The rows, numbered as in the sheet; empty ones are left out."""
        width = len(self.columns)
        for number, cells in self._rows:
            if any(cell is not None for cell in cells):
                padded = (*cells[:width], *(None,) * (width - len(cells)))
                yield Row(number, dict(zip(self.columns, padded, strict=True)))
