"""ByteStream: a file or a pipe, unpacked, whose beginning can be looked at before it is read."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from helix_jobs.intake.packed import packing_of, unpacked

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_PIECE: Final = 64 * 1024


class ByteStream(io.RawIOBase):
    """The unpacked bytes of a stream.

    Args:
        stream: The bytes from their beginning, perhaps packed.
        look: How many of the unpacked bytes may be looked at.

    Attributes:
        first: The first bytes.
        is_whole: Whether these are all.
        packing: How the stream is packed; None if it is not.
    """

    def __init__(self, stream: BinaryIO, look: int) -> None:
        self._packed = stream
        beginning = _exactly(stream, 16)
        source = cast("BinaryIO", _Joined(beginning, stream))
        self.packing = packing_of(beginning)
        self._source = source if self.packing is None else cast("BinaryIO", unpacked(self.packing, source))
        self.first = _exactly(self._source, look)
        self.is_whole = len(self.first) < look
        self._joined = _Joined(self.first, self._source)

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill the buffer with the next bytes."""
        return self._joined.readinto(buffer)

    def seekable_file(self) -> BinaryIO:
        """A file with all of the bytes, in which one can seek: the stream itself if it is a plain file.

        Trade-off: a pipe or a packed file goes to a temporary file first, as Parquet has its index at the end; that
        takes room on the disk instead of memory.
        """
        if self.packing is None and _is_plain_file(self._packed):
            self._packed.seek(0)
            return self._packed
        # Deleted when it is closed; whoever reads it closes it.
        spool = tempfile.TemporaryFile(prefix="helix-")  # noqa: SIM115
        shutil.copyfileobj(io.BufferedReader(self), spool, _PIECE)
        spool.seek(0)
        return cast("BinaryIO", spool)


class _Joined(io.RawIOBase):
    """Bytes that were read already, then the stream behind them."""

    def __init__(self, first: bytes, stream: BinaryIO) -> None:
        self._first = memoryview(first)
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data: bytes | memoryview = self._first[: len(view)]
        self._first = self._first[len(data) :]
        if not len(data):
            data = self._stream.read(len(view))
        view[: len(data)] = data
        return len(data)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    """So many bytes, or all that there are: a pipe gives them in pieces."""
    pieces = []
    while size and (piece := stream.read(min(size, _PIECE))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _is_plain_file(stream: BinaryIO) -> bool:
    try:
        return stream.seekable() and os.fstat(stream.fileno()).st_size >= 0
    except (OSError, AttributeError, ValueError):
        return isinstance(stream, io.BytesIO)
