"""open_table: detects what a table is and opens it. Whatever it is, its rows come one by one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, Self, cast

from helix_jobs.errors import InputError
from helix_jobs.intake.file_formats import no_table
from helix_jobs.intake.text_encoding import wide_encoding
from helix_jobs.tables.arrow_files import ArrowFilesRows
from helix_jobs.tables.arrow_rows import FRAME_METHOD, PARQUET, ArrowRows, is_arrow
from helix_jobs.tables.byte_stream import ByteStream
from helix_jobs.tables.delimited import DelimitedRows
from helix_jobs.tables.excel_rows import ZIP, ExcelRows
from helix_jobs.tables.hub_dataset import HubDataset
from helix_jobs.tables.json_rows import JsonRows
from helix_jobs.tables.read_options import is_pattern
from helix_jobs.tables.row import BadRow, Row
from helix_jobs.tables.saved_dataset import SavedDatasetRows, is_saved_dataset
from helix_jobs.tables.text_files import TEXT_SUFFIXES, TextFileRows
from helix_jobs.tables.text_form import LOOK_BYTES, delimiter_name, delimiter_of, read_delimiter, text_form

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from helix_jobs.intake.raw_lines import RejectSink
    from helix_jobs.tables.read_options import ReadOptions

_JSON_BEGINS: Final = (b"{", b"[")
_BOM: Final = b"\xef\xbb\xbf"


class Rows(Protocol):
    """Rows of whatever kind of table."""

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns that every row has; None if each row has its own."""

    def rows(self) -> Iterator[Row] | Iterator[Row | BadRow]:
        """The rows, once, in their order."""


class OpenedTable:
    """A table that is being read.

    Attributes:
        name: The path as a person gave it; None for what has none.
        reading: How it is read, for a person, such as ``CSV, UTF-8, commas between columns``.
        columns: The columns that every row has; None if each row has its own.
        schema: Arrow's fields of the columns, where the table is typed; None where it is not.
    """

    def __init__(
        self,
        rows: Rows,
        reading: str,
        *,
        name: str | None = None,
        stream: BinaryIO | None = None,
        opened: Iterable[BinaryIO] = (),
    ) -> None:
        self.name = name
        self.reading = reading
        self.columns = rows.columns
        self.schema: Any = getattr(rows, "schema", None)
        self._rows = rows
        self._stream = stream
        self._stack = ExitStack()
        for file in opened:
            self._stack.enter_context(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows, once, in their order.

        Raises:
            InputError: The rest cannot be read.
        """
        try:
            yield from self._rows.rows()
        except UnicodeError as error:
            raise InputError(
                "the table has bytes that are not of its encoding; name another one with --encoding"
            ) from error
        except OSError as error:
            raise InputError(f"{self.name or 'the table'} cannot be read ({error.strerror or error})") from error

    def position(self) -> tuple[int | None, int | None]:
        """Bytes read and in total, of a plain file."""
        try:
            if self._stream is not None:
                return self._stream.tell(), os.fstat(self._stream.fileno()).st_size or None
        except (OSError, ValueError):
            pass
        return None, None


def open_table(source: object, options: ReadOptions, rejects: RejectSink | None = None) -> OpenedTable:
    """Open a table.

    Args:
        source: A path, a folder, a pattern, a data set of the hub, a binary stream, a data frame with Arrow's
            interface, or mappings.
        options: What would otherwise be detected.
        rejects: Receives the tail of a line of JSON that is too long to hold.

    Raises:
        ConfigurationError: A library for the format is not installed.
        InputError: It cannot be opened, or is no table.
    """
    if isinstance(source, str) and (dataset := HubDataset.parse(source)) is not None:
        return _open_dataset(dataset, options, rejects)
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source), options, rejects)
    if hasattr(source, "read") and not hasattr(source, FRAME_METHOD):
        stream = cast("BinaryIO", source)
        name = getattr(stream, "name", None)
        return _open_stream(stream, name if isinstance(name, str) else None, options, rejects, owned=False)
    if hasattr(source, FRAME_METHOD):
        return OpenedTable(ArrowRows.of_frame(source), f"a data frame{options.without_effect()}")
    if isinstance(source, bytes | bytearray | Mapping) or not isinstance(source, Iterable):
        raise InputError(
            f"the table is a {type(source).__name__}; give a path, a binary stream, a data frame, or mappings"
        )
    return OpenedTable(_MappingRows(source), f"mappings{options.without_effect()}")


def _open_dataset(dataset: HubDataset, options: ReadOptions, rejects: RejectSink | None) -> OpenedTable:
    files = dataset.fetch()
    if len(files) == 1:
        table = _open_path(str(files[0]), options, rejects)
        table.name = dataset.text
        return table
    told = f"Parquet in {len(files)} files{options.without_effect()}"
    return OpenedTable(ArrowFilesRows(files), told, name=dataset.text)


def _open_path(text: str, options: ReadOptions, rejects: RejectSink | None) -> OpenedTable:
    path = Path(text)
    name = os.fsencode(text).decode(errors="replace")
    if path.is_dir() and is_saved_dataset(path):
        return OpenedTable(SavedDatasetRows(path), f"a saved data set{options.without_effect()}", name=name)
    # A delimiter says that one file of text is a table.
    is_text = path.suffix.lower() in TEXT_SUFFIXES and options.delimiter is None
    if path.is_dir() or is_pattern(text) or is_text:
        files = TextFileRows(text, options.encoding)
        if not path.is_file() and next(files.rows(), None) is None:
            raise InputError(
                f"{text} has no files of text; name a folder, or a pattern in quotes such as 'notes/*.txt'"
            )
        return OpenedTable(files, f"text files{options.without_effect('encoding')}", name=name)
    try:
        stream = path.open("rb")
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(f"{text} {reason}; name a table or a folder of text files") from error
    try:
        return _open_stream(stream, name, options, rejects, owned=True)
    except BaseException:
        stream.close()
        raise


def _open_stream(
    stream: BinaryIO, name: str | None, options: ReadOptions, rejects: RejectSink | None, *, owned: bool
) -> OpenedTable:
    source = ByteStream(stream, LOOK_BYTES)
    seekable: BinaryIO | None = None
    used: tuple[str, ...] = ()
    rows: Rows
    if is_arrow(source.first):
        seekable = source.seekable_file()
        rows = ArrowRows.of_file(seekable, source.first)
        reading = "Parquet" if source.first.startswith(PARQUET) else "Arrow"
    elif source.first.startswith(ZIP):
        seekable = source.seekable_file()
        rows = workbook = ExcelRows(seekable, options.sheet)
        reading, used = f"Excel, sheet {workbook.sheet}", ("sheet",)
    elif _is_json(source.first) and options.delimiter is None:
        rows = JsonRows(source, name if owned else None, rejects)
        reading = "JSON lines"
    else:
        is_told = options.encoding is not None or options.delimiter is not None
        if not is_told and (what := no_table(source.first)) is not None:
            raise InputError(f"{name or 'the input'} is {what}, and no table; save it as CSV, .xlsx or text")
        form = text_form(source.first, is_whole=source.is_whole, given=options.encoding)
        text = source.first.decode(form.codec, errors="replace")
        if options.delimiter is None:
            delimiter = delimiter_of(text, is_whole=source.is_whole)
        else:
            delimiter = read_delimiter(options.delimiter)
        rows = DelimitedRows(source, form, delimiter)
        guess = " by the look of it (--encoding names another)" if form.is_guess else ""
        reading = f"CSV, {form.shown}{guess}, {delimiter_name(delimiter)} between columns"
        used = ("encoding", "delimiter")
    opened = [stream] if owned else []
    if seekable is not None and seekable is not stream:
        opened.append(seekable)
    packed = f" in {source.packing}" if source.packing else ""
    told = f"{reading}{packed}{options.without_effect(*used)}"
    return OpenedTable(rows, told, name=name, stream=stream, opened=opened)


def _is_json(first: bytes) -> bool:
    if (wide := wide_encoding(first)) is not None:  # refused by the reader of JSON lines, with the command for it
        first = first.decode(wide.codec, errors="replace").removeprefix("\ufeff").encode(errors="replace")
    return first.removeprefix(_BOM).lstrip().startswith(_JSON_BEGINS)


class _MappingRows:
    """Rows from Python."""

    columns = None

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows, numbered from 1."""
        for number, item in enumerate(self._items, start=1):
            if isinstance(item, Mapping):
                yield Row(number, item)
            else:
                reason = f"is a {type(item).__name__}, not a mapping"
                yield BadRow(number, "(row)", reason, "give a mapping of columns", b"")
