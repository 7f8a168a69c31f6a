"""Open a submission's input as lines, and write its bad lines."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self, cast

from helix_jobs.errors import ConfigurationError, InputError
from helix_jobs.intake.file_formats import open_lines
from helix_jobs.output_file import part_of_input, written_whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from helix_jobs.errors import BadLine
    from helix_jobs.intake.lines import LineReader
    from helix_jobs.new_job import NewJob


class Source(Protocol):
    """An input whose lines can be read once."""

    @property
    def name(self) -> str | None:
        """The value for ``batches.source``."""

    def read(self, reader: LineReader) -> Iterator[NewJob | BadLine]:
        """Yield the lines in order."""

    def position(self) -> tuple[int | None, int | None]:
        """Bytes read and bytes in total, as far as known."""

    def facts(self) -> dict[str, Any]:
        """What was read, to be stored with the batch; complete when all lines have been read."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_source(source: str | os.PathLike[str] | BinaryIO | Iterable[Mapping[str, Any]]) -> Source:
    """Open a path, a binary stream or mappings for reading.

    Raises:
        InputError: The file cannot be opened, or the source is none of these.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            stream: BinaryIO = path.open("rb")
        except OSError as error:
            reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            raise InputError(f"{path} {reason}; name a JSONL file of prompts") from error
        # A file name need not be UTF-8, but the column must.
        return _StreamSource(stream, os.fsencode(path).decode(errors="replace"), owned=True)
    if isinstance(cast("object", source), io.TextIOBase):
        raise InputError('the stream gives text, not bytes; open the file with mode "rb"')
    if hasattr(source, "readline"):
        stream = cast("BinaryIO", source)
        name = getattr(stream, "name", None)
        return _StreamSource(stream, name if isinstance(name, str) else None, owned=False)
    if isinstance(source, bytes | bytearray | Mapping) or not isinstance(source, Iterable):
        raise InputError(
            f"the input is a {type(source).__name__}; give a path, a binary stream, or an iterable of mappings"
        )
    return _MappingSource(source)


class _StreamSource:
    """JSONL bytes."""

    def __init__(self, stream: BinaryIO, name: str | None, *, owned: bool) -> None:
        self.name = name
        self._stream = stream
        self._owned = owned

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owned:
            self._stream.close()

    def read(self, reader: LineReader) -> Iterator[NewJob | BadLine]:
        """Yield the lines.

        Raises:
            InputError: Reading fails, or the stream holds no lines of JSON.
        """
        try:
            lines = open_lines(self._stream, self.name if self._owned else None)
            yield from reader.read(lines)
        except OSError as error:
            raise InputError(f"{self.name or 'the input'} cannot be read ({error.strerror})") from error

    def position(self) -> tuple[int | None, int | None]:
        """Known for files opened here."""
        if not self._owned:
            return None, None
        try:
            return self._stream.tell(), os.fstat(self._stream.fileno()).st_size or None
        except OSError:  # a named pipe
            return None, None

    def facts(self) -> dict[str, Any]:
        """None beyond the lines."""
        return {}


class _MappingSource:
    """Parsed lines from Python."""

    name = None

    def __init__(self, items: Iterable[Mapping[str, Any]]) -> None:
        self._items = items

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to close."""

    def read(self, reader: LineReader) -> Iterator[NewJob | BadLine]:
        """Yield the lines."""
        return reader.read_mappings(self._items)

    def position(self) -> tuple[int | None, int | None]:
        """Unknown."""
        return None, None

    def facts(self) -> dict[str, Any]:
        """None beyond the lines."""
        return {}


class RejectsFile:
    """Receives the bytes of bad lines. A path's file is begun at the first bad line and put in place by ``finish``.

    Args:
        destination: A path or a binary stream.
        source: The input; a file that is part of it is refused.
    """

    def __init__(self, destination: str | os.PathLike[str] | BinaryIO, source: object = None) -> None:
        self._path = Path(destination) if isinstance(destination, str | os.PathLike) else None
        self._source = source
        self._stream = None if isinstance(destination, str | os.PathLike) else destination
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        part = None if self._path is None else part_of_input(self._path, self._source, "input")
        if part is not None:
            raise InputError(f"{self._path} {part}; name another place for the bad lines")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        elif isinstance(error, InputError):
            # The input is refused, and its bad lines are what a person wants to see.
            try:
                self.finish()
            except InputError as besides:
                error.add_note(str(besides))
        else:
            self._give_up()

    def write(self, data: bytes, /) -> None:
        """Append bytes.

        Raises:
            InputError: The bytes cannot be written.
        """
        with self._named_in_errors():
            if self._stream is None and self._path is not None:
                self._stream = self._stack.enter_context(written_whole(self._path, follow=False))
            if self._stream is not None:
                self._stream.write(data)

    def finish(self) -> None:
        """Flush the buffer and put the file in place. Call it while the batch can still be given up if this fails.

        Trade-off: a batch that fails later, when it is sealed, leaves the file behind. That does no harm. If this came
        after the seal, an error here would hide that the jobs run, and a person would submit them twice.

        Raises:
            InputError: The bad lines cannot be written.
        """
        with self._named_in_errors():
            if self._path is None and self._stream is not None:
                self._stream.flush()
            self._stack.close()

    def _give_up(self) -> None:
        """Leave the path's earlier file in place."""
        # Not the current error: an OSError would be taken for an error of this file.
        given_up = InputError("the bad lines are given up")
        with suppress(ConfigurationError, OSError):
            self._stack.__exit__(InputError, given_up, None)
        self._stream = None

    @contextmanager
    def _named_in_errors(self) -> Iterator[None]:
        try:
            yield
        except ConfigurationError as error:
            self._give_up()
            raise InputError(f"the bad lines: {error}") from error
        except OSError as error:
            self._give_up()
            where = self._path or "the stream for bad lines"
            raise InputError(f"{where} cannot be written ({error.strerror}); name another place") from error
