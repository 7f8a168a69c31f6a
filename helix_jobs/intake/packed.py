"""Packed files: gzip, bzip2, xz and zstd, recognised by their first bytes and unpacked as they are read.

The unpacked bytes are never held whole, and a packed file cannot ask for more memory than a limit: xz and zstd name
the size of their window in the file.
"""

from __future__ import annotations

import importlib
import io
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, cast

from helix_jobs.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from _typeshed import WriteableBuffer

_PIECE: Final = 64 * 1024
_XZ_MEMORY: Final = 256 * 1024 * 1024
# Python has zstd from 3.14 on; a package of the same interface brings it to older ones. Its windows are 128 MB at most.
_ZSTD_MODULES: Final = ("compression.zstd", "backports.zstd")
# First bytes -> the kind, and the command that unpacks it.
KINDS: Final[Mapping[bytes, tuple[str, str]]] = {
    b"\x1f\x8b\x08": ("gzip", "gunzip -c"),
    b"BZh": ("bzip2", "bzip2 -dc"),
    b"\xfd7zXZ\0": ("xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
}


class _Decompressor(Protocol):
    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Unpack some bytes, at most ``max_length``."""
        ...


class PackedBytes(Protocol):
    """The part of a binary stream's interface that unpacking needs."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes; none at the end."""
        ...


def packing_of(first: bytes) -> str | None:
    """The kind of packing that a file's first bytes tell; None for a file that is not packed."""
    return next((kind for signature, (kind, _) in KINDS.items() if first.startswith(signature)), None)


def unpacked(kind: str, packed: PackedBytes) -> io.BufferedReader:
    """The unpacked bytes of a packed stream. Files that were packed one by one and concatenated are read as one.

    Reading raises `InputError` where the file is damaged or cut short.

    Args:
        kind: As ``packing_of`` tells it.
        packed: The packed bytes, from their beginning.

    Raises:
        InputError: This Python cannot unpack the kind.
    """
    if kind == "gzip":
        return io.BufferedReader(_Gzip(packed), _PIECE)
    makers: dict[str, Callable[[], Callable[[], Any]]] = {"bzip2": _bzip2_maker, "xz": _xz_maker, "zstd": _zstd_maker}
    return io.BufferedReader(_Unpacked(kind, packed, makers[kind]()), _PIECE)


# Each library is imported for the kind that needs it: most input is not packed.
def _bzip2_maker() -> Callable[[], Any]:
    import bz2

    return bz2.BZ2Decompressor


def _xz_maker() -> Callable[[], Any]:
    import lzma

    return lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


def _zstd_maker() -> Callable[[], Any]:
    for name in _ZSTD_MODULES:
        try:
            maker: Callable[[], Any] = importlib.import_module(name).ZstdDecompressor
        except ImportError:
            continue
        return maker
    raise InputError(
        "the input is compressed with zstd, which Python can unpack from 3.14 on, or with backports.zstd: run "
        'pip install -e ".[tables]" in the clone, or unpack it: zstd -dc FILE | helix submit -'
    )


class _Gzip(io.RawIOBase):
    """Gzip by the standard library's own reader, which checks each member's sum."""

    def __init__(self, packed: PackedBytes) -> None:
        import gzip

        self._file = gzip.GzipFile(fileobj=cast("BinaryIO", packed), mode="rb")
        self._error = gzip.BadGzipFile

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = self._file.read1(len(view))
        except (EOFError, self._error, zlib.error) as error:
            raise _damaged("gzip") from error
        view[: len(data)] = data
        return len(data)


class _Unpacked(io.RawIOBase):
    """The bytes that a decompressor of the standard library's interface makes."""

    def __init__(self, kind: str, packed: PackedBytes, maker: Callable[[], _Decompressor]) -> None:
        self._kind = kind
        self._packed = packed
        self._maker = maker
        self._decompressor: _Decompressor | None = None
        self._held = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._next(len(view))
        view[: len(data)] = data
        return len(data)

    def _next(self, most: int) -> bytes:
        """The next bytes, at most so many; none at the end."""
        while True:
            current = self._decompressor
            if current is None or current.eof:
                if not self._find_member(current):
                    return b""
                current = self._decompressor = self._maker()
            elif current.needs_input:
                self._held = self._packed.read(_PIECE)
                if not self._held:
                    raise _damaged(self._kind)
            held, self._held = self._held, b""
            try:
                data = current.decompress(held, most)
            except MemoryError as error:
                raise _too_large(self._kind) from error
            except Exception as error:  # each library has an error of its own, and bzip2's is an OSError
                if "memory" in str(error).lower():
                    raise _too_large(self._kind) from error
                raise _damaged(self._kind) from error
            if data:
                return data

    def _find_member(self, last: _Decompressor | None) -> bool:
        """Hold the first bytes of the next packed file; False where there is none."""
        held = b"" if last is None else last.unused_data
        while True:
            # Files of xz may be padded with NULs.
            self._held = held.lstrip(b"\0") if self._kind == "xz" else held
            if self._held:
                return True
            held = self._packed.read(_PIECE)
            if not held:
                return False


def _damaged(kind: str) -> InputError:
    command = next(command for name, command in KINDS.values() if name == kind)
    return InputError(
        f"the input is compressed with {kind} and is damaged or cut short; make it again, or see how far "
        f"`{command}` gets"
    )


def _too_large(kind: str) -> InputError:
    command = next(command for name, command in KINDS.values() if name == kind)
    return InputError(
        f"the input is compressed with {kind} in a way that takes more than {_XZ_MEMORY // 1024**2} MiB to unpack; "
        f"unpack it: {command} FILE | helix submit -"
    )
