"""GgufHeader: the settings and the table of tensors of a .gguf file, read within the bounds of the file.

The reader of the ``gguf`` package believes what a header says: an array of 2^40 numbers keeps it busy for hours. This
reader checks every length against the bytes that are left, so its time is bounded by the header's length.

Every number of an array is an object here, so a few megabytes may take a hundred. Therefore a header that holds more of
anything than the headers of models do is refused, too.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from helix_jobs.engine.loading.stored_tensor import StoredTensor, refuse_lfs_pointer
from helix_jobs.errors import ModelError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
# The largest vocabularies in use make headers of 15 MB.
HEADER_LIMIT: Final = 64_000_000
# The longest strings in use are chat templates of some 30 kB.
_STRING_LIMIT: Final = 4_000_000
# A vocabulary of 262,144 tokens with scores, types and 514,000 merges takes 2.1 million objects. A number in an array
# is one object, a string two: its length and its text.
_OBJECT_LIMIT: Final = 2_500_000
# Limit of settings, and of tensors. Models have some hundred settings and some thousand tensors.
_ENTRY_LIMIT: Final = 65_536
_STRING: Final = 8
_ARRAY: Final = 9
# The other types of values, by their number in the format.
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LARGEST_DIMENSION: Final = 2**40
_DIMENSIONS: Final = 4
# The format has three versions and some forty types, and gets new ones. A larger number means damage.
_LARGEST_NUMBER: Final = 255
_ALIGNMENT_KEY: Final = "general.alignment"
_ALIGNMENT: Final = 32


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The part of a file before its weights.

    Attributes:
        path: The file.
        settings: Values by key: numbers, strings, booleans, and lists of them.
        tensors: Type and shape by tensor name.
        places: Offset of each tensor's bytes in the file.
    """

    path: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    places: Mapping[str, int]


def read_gguf_header(name: str, path: Path, there: int | None = None) -> GgufHeader:
    """Read the header of a GGUF file.

    Args:
        name: The model's name as the user gave it.
        path: An existing file.
        there: Bytes of it that are on this machine; None for all. The others are not read.

    Raises:
        ModelError: The file is not GGUF, damaged, or incomplete.
        UnsupportedArchitectureError: The file's version of the format is not supported.
    """
    refuse_lfs_pointer(name, path)
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise ModelError(f"model {name} is not a GGUF file; fetch it again")
        try:
            header, end = _read(name, _Cursor(stream, min(size if there is None else there, HEADER_LIMIT)), path)
        except (ValueError, KeyError, TypeError, struct.error, OverflowError) as error:
            raise ModelError(f"model {name}: the GGUF file is damaged ({error}); fetch it again") from error
    if end > size:
        raise ModelError(f"model {name}: the GGUF file is cut short; fetch it again")
    return header


class _Cursor:
    """Reads values one after another, and never beyond the end."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream = stream
        self._left = limit - len(MAGIC)
        self._objects = 0
        self.position = len(MAGIC)

    def expect(self, count: int, width: int) -> None:
        """Refuse ``count`` values of at least ``width`` bytes each if fewer bytes are left."""
        if count * width > self._left:
            raise ValueError("a length in its header exceeds the file")

    def expect_entries(self, count: int, width: int, what: str) -> None:
        """Refuse a table with more rows than the bytes left can hold, or than models have."""
        self.expect(count, width)
        if count > _ENTRY_LIMIT:
            raise ValueError(f"its header has {count:,} {what}, and no model has more than {_ENTRY_LIMIT:,}")

    def expect_elements(self, count: int, width: int, objects: int) -> None:
        """Refuse an array that the bytes left cannot hold, or that brings the header's arrays beyond those of models.

        Args:
            count: Number of elements.
            width: Least number of bytes of an element.
            objects: Number of objects that the gguf package's reader makes of an element.
        """
        self.expect(count, width)
        self._objects += count * objects
        if self._objects > _OBJECT_LIMIT:
            raise ValueError("its header has arrays longer than any model's")

    def take(self, count: int) -> bytes:
        self.expect(count, 1)
        taken = self._stream.read(count)
        if len(taken) != count:
            raise ValueError("it ends inside its header")
        self._left -= count
        self.position += count
        return taken

    def scalar(self, code: str) -> Any:  # noqa: ANN401  (a number or a boolean)
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        self.expect(length, 1)
        if length > _STRING_LIMIT:
            raise ValueError(f"its header has a text of {length:,} bytes, and no model has one over {_STRING_LIMIT:,}")
        return self.take(length).decode("utf-8")

    def value(self, kind: int) -> Any:  # noqa: ANN401  (GGUF metadata is what the file says)
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            self.expect_elements(count, 8, 2)
            return [self.string() for _ in range(count)]
        if kind == _ARRAY:
            raise ValueError("it has an array of arrays")
        code = _SCALARS[kind]
        width = struct.calcsize("<" + code)
        self.expect_elements(count, width, 1)
        return list(struct.unpack(f"<{count}{code}", self.take(count * width)))


def _read(name: str, cursor: _Cursor, path: Path) -> tuple[GgufHeader, int]:
    """The header, and the offset at which the last tensor ends."""
    version = cursor.scalar("I")
    if version > _LARGEST_NUMBER:
        raise ValueError(f"its version is {version}")
    if version not in _VERSIONS:
        raise UnsupportedArchitectureError(
            f"model {name}: version {version} of the GGUF format cannot be read (supported are "
            f"{', '.join(map(str, _VERSIONS))}); use the model's safetensors or a GGUF file of another version"
        )
    num_tensors, num_settings = cursor.scalar("Q"), cursor.scalar("Q")
    cursor.expect_entries(num_settings, 13, "settings")
    settings: dict[str, Any] = {}
    for _ in range(num_settings):
        key = cursor.string()
        if key in settings:
            raise ValueError(f"it has {key:.100} twice")
        settings[key] = cursor.value(cursor.scalar("I"))
    cursor.expect_entries(num_tensors, 24, "tensors")
    tensors: dict[str, StoredTensor] = {}
    offsets: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for _ in range(num_tensors):
        tensor = cursor.string()
        if tensor in tensors:
            raise ValueError(f"it has {tensor:.100} twice")
        tensors[tensor], sizes[tensor], offsets[tensor] = _entry(cursor)
    alignment = settings.get(_ALIGNMENT_KEY, _ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        raise ValueError(f"its alignment is {alignment!r:.40}")
    start = -(-cursor.position // alignment) * alignment
    places = {tensor: start + offset for tensor, offset in offsets.items()}
    end = max((places[tensor] + sizes[tensor] for tensor in places), default=0)
    return GgufHeader(path, settings, tensors, places), end


def _entry(cursor: _Cursor) -> tuple[StoredTensor, int, int]:
    """One row of the table: the tensor, the number of its bytes, and their offset after the header.

    A type that the installed gguf package does not know is named by its number. The size of such a tensor is unknown,
    so it counts as no bytes.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    dimensions = cursor.scalar("I")
    if not 0 < dimensions <= _DIMENSIONS:
        raise ValueError(f"a tensor has {dimensions} dimensions")
    lengths = [cursor.scalar("Q") for _ in range(dimensions)]
    number, offset = cursor.scalar("I"), cursor.scalar("Q")
    if number > _LARGEST_NUMBER:
        raise ValueError(f"a tensor has the type {number}")
    try:
        known = GGMLQuantizationType(number)
    except ValueError:
        kind, block, width = f"type {number}", 1, 0
    else:
        kind, (block, width) = known.name, GGML_QUANT_SIZES[known]
    if any(not 0 < length < _LARGEST_DIMENSION for length in lengths) or lengths[0] % block:
        raise ValueError(f"a tensor has the shape {lengths}")
    # The format has the innermost length first.
    return StoredTensor(kind, tuple(reversed(lengths))), math.prod(lengths) // block * width, offset
