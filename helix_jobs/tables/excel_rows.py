"""Rows of one worksheet of an Excel workbook, by openpyxl, which reads row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, Final

from helix_jobs.errors import ConfigurationError, InputError
from helix_jobs.intake.line_faults import cut, short
from helix_jobs.tables.columns import column_names
from helix_jobs.tables.row import WHOLE_ROW, BadRow, Row, row_json
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ZIP: Final = b"PK\x03\x04"
_SHOWN: Final = 10
_EMPTY: Final = (None, "")


class ExcelRows:
    """The rows below a worksheet's header. Of formulas the values count that Excel has stored.

    Args:
        stream: The file, in which one can seek.
        sheet: The worksheet's name; None for the first one. Sheets of charts do not count.

    Attributes:
        columns: The names in the header; a column without one is called ``column_N``.
        sheet: The worksheet's name.

    Raises:
        ConfigurationError: openpyxl is not installed.
        InputError: It is no workbook, or damaged, or has no such worksheet, or the worksheet is empty.
    """

    def __init__(self, stream: BinaryIO, sheet: str | None = None) -> None:
        workbook = _opened(_openpyxl(), stream)
        sheets = {worksheet.title: worksheet for worksheet in workbook.worksheets}
        if sheet is not None and sheet not in sheets:
            raise InputError(
                f"the workbook has no worksheet {short(sheet)!r}; it has "
                f"{cut(', '.join(map(short, list(sheets)[:_SHOWN]))) or 'none at all'}"
            )
        self.sheet = next(iter(sheets), "") if sheet is None else sheet
        if not sheets:
            raise InputError("the workbook has no worksheet with rows, but charts alone; name another file")
        self._rows = enumerate(self._cells(sheets[self.sheet]), start=1)
        header = next((cells for _, cells in self._rows if any(cell is not None for cell in cells)), None)
        if header is None:
            raise InputError(f"the sheet {short(self.sheet)!r} is empty; its first row names the columns")
        # A sheet is often wider than its table: formats reach into empty columns.
        last = max(place for place, cell in enumerate(header, start=1) if cell is not None)
        self.columns = column_names(header[:last])

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows, numbered as in the sheet; those of empty cells only are left out.

        Raises:
            InputError: The sheet is damaged.
        """
        width = len(self.columns)
        for number, cells in self._rows:
            # A formula may give an empty text.
            last = max((place for place, cell in enumerate(cells, start=1) if cell not in _EMPTY), default=0)
            if last > width:
                yield _too_wide(number, cells[:last], width)
            elif last:
                padded = (*cells[:width], *(None,) * (width - len(cells)))
                yield Row(number, dict(zip(self.columns, padded, strict=True)))

    def _cells(self, worksheet: Any) -> Iterator[tuple[object, ...]]:  # noqa: ANN401  (openpyxl is untyped)
        """The rows of a worksheet, as far as each has cells."""
        # Programs write wrong dimensions, and openpyxl would believe them: rows beyond them would be lost.
        worksheet.reset_dimensions()
        read = 0
        try:
            for cells in worksheet.iter_rows(values_only=True):
                read += 1
                yield cells
        except Exception as error:  # of a dozen kinds: openpyxl lets those of zip, zlib, XML and its own values pass
            raise InputError(
                f"the sheet {short(self.sheet)!r} is damaged behind row {read:,} ({type(error).__name__}); open it in "
                "Excel and save it again, or save the sheet as CSV"
            ) from error


def _too_wide(number: int, cells: tuple[object, ...], width: int) -> BadRow:
    try:
        original = row_json(cells)
    except ValueError:
        original = b""
    reason = f"has {counted(len(cells), 'cell')}, and the header names {width:,}"
    remedy = "name every column in the header, or clear the cells to the right of it"
    return BadRow(number, WHOLE_ROW, reason, remedy, original)


def _openpyxl() -> ModuleType:
    try:
        import openpyxl
    except ImportError as error:
        raise ConfigurationError(
            'Excel workbooks need openpyxl, which is not installed; run pip install -e ".[tables]" in the clone'
        ) from error
    module: ModuleType = openpyxl
    return module


def _opened(openpyxl: ModuleType, stream: BinaryIO) -> Any:  # noqa: ANN401  (openpyxl is untyped)
    try:
        return openpyxl.load_workbook(stream, read_only=True, data_only=True)
    except Exception as error:  # of a dozen kinds, AttributeError among them
        raise InputError(
            f"the input is a ZIP archive and no Excel workbook that can be read ({type(error).__name__}); unpack it, "
            "or open it in Excel and save it as .xlsx or CSV"
        ) from error
