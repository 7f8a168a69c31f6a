"""StoredTensor: what a model file's header says of one tensor; and the reader of safetensors headers.

A header is untrusted text: the reader returns a StoredTensor for each name, or raises ModelError.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from helix_jobs.engine.model.model_words import subject
from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.engine.loading.quantized_format import QuantizedMatrix

HEADER_LIMIT: Final = 100_000_000  # safetensors' own limit
# Bytes of one element, by the names that safetensors gives its types.
_ELEMENT_BYTES: Final = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "F8_E4M3": 1,
}
# Types that ``read_tensor`` reads.
READ_KINDS: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_LARGEST: Final = 2**63
_DIMENSIONS: Final = 16
_LFS_POINTER: Final = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a tensor stand in a file."""

    file: Path
    start: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        kind: Its type, as the file format names it: ``BF16``, ``F8_E4M3``, ``Q4_K``.
        shape: Its lengths, outermost first, as torch has them.
        is_merged: Whether the files hold its parts by themselves, and transformers copies them into one tensor.
        place: Where a safetensors file has it; None elsewhere.
        parts: Its parts, whose rows stand one behind another's, where it is merged.
        matrix: The quantised matrix that it is; its type is then that of the matrix' blocks.
        is_flipped: Whether the file has rows and columns of its matrices exchanged, see ``with_upright_experts``.
    """

    kind: str
    shape: tuple[int, ...]
    is_merged: bool = False
    place: Place | None = field(default=None, compare=False)
    parts: tuple[StoredTensor, ...] = field(default=(), compare=False, repr=False)
    matrix: QuantizedMatrix | None = field(default=None, compare=False, repr=False)
    is_flipped: bool = False

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """Weights in blocks which can be multiplied as they are.

    Attributes:
        weights: Their number.
        nbytes: Bytes of their blocks.
        embedding: The type of the embedding's blocks; None if it is in none.
        has_bytes: Whether bytes multiply all of them, see ``PackedInt8Linear``.
    """

    weights: int
    nbytes: int
    embedding: str | None = None
    has_bytes: bool = False


NO_BLOCKS: Final = StoredBlocks(weights=0, nbytes=0)


def read_safetensors_header(name: str, file: Path) -> dict[str, StoredTensor]:
    """Read what a safetensors file holds, by name, without its tensors.

    Args:
        name: The model's name as the user gave it.
        file: An existing file.

    Raises:
        ModelError: The file is not a safetensors file, or is incomplete.
    """
    refuse_lfs_pointer(name, file)
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            # A header that claims to be longer is cut, and then is no JSON.
            header = json.loads(stream.read(min(length, HEADER_LIMIT)))
        end, tensors = 0, {}
        for key, value in header.items():
            if key != "__metadata__":
                tensors[key], stop = _entry(value, file, 8 + length)
                end = max(end, stop)
    # RecursionError: deeply nested lists.
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ModelError(f"{subject(name, file)} is not a safetensors file; fetch the model again") from error
    if size < 8 + length + end:
        raise ModelError(f"{subject(name, file)} is cut short; fetch the model again")
    return tensors


def _entry(value: Any, file: Path, data: int) -> tuple[StoredTensor, int]:  # noqa: ANN401  (JSON of a stranger)
    """One entry of the header, and the offset at which its bytes end; raises ValueError or similar on a bad entry.

    Offsets count from ``data``, where the file's header ends.
    """
    kind, shape, (start, stop) = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or not isinstance(shape, list) or len(shape) > _DIMENSIONS:
        raise TypeError("a type is a name, a shape a short list")
    counts = [*shape, start, stop]
    if any(type(count) is not int or not 0 <= count < _LARGEST for count in counts) or stop < start:
        raise ValueError("lengths and offsets are whole numbers")
    tensor = StoredTensor(kind, tuple(shape), place=Place(file, data + start))
    element = _ELEMENT_BYTES.get(kind)
    if element is not None and tensor.elements * element != stop - start:
        raise ValueError("the shape does not fill the bytes")
    return tensor, stop


def read_tensor(name: str, stored: StoredTensor) -> torch.Tensor:
    """Read a tensor of a safetensors file, as its ``shape`` has it, into memory of its own.

    A mapped file that is cut short would kill the process, and its pages would count as the process's memory.

    Args:
        name: The model's name as the user gave it.
        stored: From ``read_safetensors_header``, of a type in ``READ_KINDS``.

    Raises:
        ModelError: The file has become shorter since its header was read.
        OSError: The file cannot be read.
    """
    assert stored.place is not None, "a tensor of a safetensors file"
    data = torch.empty(stored.shape, dtype=READ_KINDS[stored.kind])
    if stored.is_flipped:  # [experts, columns, rows]
        data = data.view(data.shape[0], data.shape[2], data.shape[1])
    room: Any = data.view(-1).view(torch.uint8).numpy()
    with stored.place.file.open("rb") as stream:
        stream.seek(stored.place.start)
        if stream.readinto(room) != data.nbytes:
            raise ModelError(f"{subject(name, stored.place.file)} is cut short; fetch the model again")
    return data.transpose(1, 2).contiguous() if stored.is_flipped else data


def refuse_lfs_pointer(name: str, file: Path) -> None:
    """Refuse the small text file that a clone without Git LFS has in place of a large file.

    Raises:
        ModelError: The file is such a pointer.
    """
    with file.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ModelError(f"{subject(name, file)} is a Git LFS pointer, not the file itself; run git lfs pull there")
