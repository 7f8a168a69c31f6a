"""The parts of a GGUF file that was split (``NAME-00001-of-00003.gguf``): all of them have to be there.

The first part has the settings, and each part has tensors of its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.loading.gguf_header import GgufHeader, read_gguf_header
from helix_jobs.engine.loading.gguf_tensors import GgufTensor
from helix_jobs.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
_COUNT, _NUMBER, _TENSORS = "split.count", "split.no", "split.tensors.count"
_MOST_PARTS: Final = 99_999


def read_gguf_parts(name: str, path: Path) -> tuple[GgufHeader, ...]:
    """The headers of a file's parts, the first one first; of a file that is not split, its own.

    Args:
        name: The model's name as the user gave it.
        path: An existing file: any of the parts.

    Raises:
        ModelError: A file is damaged, a part is missing, or the parts do not belong together.
        UnsupportedArchitectureError: As in ``read_gguf_header``.
    """
    given = read_gguf_header(name, path)
    count, number = given.settings.get(_COUNT, 0), given.settings.get(_NUMBER, 0)
    if count in (0, 1):
        return (given,)
    if type(count) is not int or type(number) is not int or not 0 <= number < count <= _MOST_PARTS:
        raise ModelError(
            f"model {name}: the GGUF file says that it is part {number!r:.40} of {count!r:.40}; fetch it again"
        )
    files = _files(name, path, number, count)
    headers = [given if file == path else read_gguf_header(name, file) for file in files]
    for index, (file, header) in enumerate(zip(files, headers, strict=True)):
        if (header.settings.get(_COUNT), header.settings.get(_NUMBER)) != (count, index):
            raise ModelError(
                f"model {name}: {file.name} does not say that it is part {index + 1} of {count}; fetch all parts again"
            )
    total, there = headers[0].settings.get(_TENSORS), sum(len(header.tensors) for header in headers)
    if total is not None and total != there:
        raise ModelError(
            f"model {name}: its parts have {there} tensors together, and the first says {total!r:.40}; "
            "fetch all parts again"
        )
    return tuple(headers)


def part_names(name: str) -> tuple[str, ...]:
    """The names of all parts of a split file, by that of one of them; a name that is not a part's alone."""
    match = _NAME.fullmatch(name)
    count = 0 if match is None else int(match["count"])
    if match is None or not 0 < int(match["number"]) <= count:
        return (name,)
    return tuple(_part_name(match, index, count) for index in range(count))


def _part_name(match: re.Match[str], index: int, count: int) -> str:
    return f"{match['stem']}-{index + 1:05}-of-{count:05}{match['suffix']}"


def gguf_tensors(name: str, headers: Sequence[GgufHeader]) -> dict[str, GgufTensor]:
    """The tensors of all parts, under the file's names.

    Raises:
        ModelError: Two parts have the same one.
    """
    found: dict[str, GgufTensor] = {}
    for header in headers:
        if twice := sorted(found.keys() & header.tensors.keys()):
            raise ModelError(f"model {name}: two parts have the tensor {twice[0]:.100}; fetch all parts again")
        found |= {
            tensor: GgufTensor(stored, header.path, header.places[tensor]) for tensor, stored in header.tensors.items()
        }
    return found


def _files(name: str, path: Path, number: int, count: int) -> list[Path]:
    """The files of all parts, as the given one's name says.

    Raises:
        ModelError: One is missing, or the name is not a part's.
    """
    what = (
        f"model {name} is part {number + 1} of {count} of a split GGUF file; merge the parts (llama-gguf-split --merge "
        "FIRST-PART MERGED) and give the merged file"
    )
    match = _NAME.fullmatch(path.name)
    if match is None or (int(match["number"]), int(match["count"])) != (number + 1, count):
        raise ModelError(f"{what}, or name each part as it was, like NAME-{number + 1:05}-of-{count:05}.gguf")
    files = [path.with_name(_part_name(match, index, count)) for index in range(count)]
    if missing := [file.name for file in files if not file.is_file()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"{what}, or put all parts into one folder: {missing[0]}{more} is missing there")
    return files
