"""Pages of mapped weight files, given back once their weights are copied.

transformers hands out views of the mapped file. What was read of it stays in memory, and counts as the process's, until
the whole file is unmapped: a model would be there twice at the end of loading.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import nn

_MAPS: Final = Path("/proc/self/maps")
_WEIGHTS: Final = ".safetensors"
# Pages of a mapped file are read from it again when they are touched again.
_DONTNEED: Final = 4


class MappedPages:
    """The mapped weight files of this process. Does nothing where the system does not tell (other than Linux)."""

    def __init__(self) -> None:
        # [(first address, last address + 1)], in order
        self._ranges = _mapped() if sys.platform == "linux" else []
        self._libc = ctypes.CDLL(None) if self._ranges else None

    def give_back(self, module: nn.Module) -> None:
        """Give back the pages of a module's weights. They can still be read, from the file."""
        if self._libc is None:
            return
        page = mmap.PAGESIZE
        for parameter in module.parameters():
            if parameter.device.type != "cpu":
                continue
            start, count = parameter.data_ptr(), parameter.numel() * parameter.element_size()
            # Whole pages alone: those at the edges belong to other weights, too.
            first, last = -(-start // page) * page, (start + count) // page * page
            index = bisect_right(self._ranges, (start, sys.maxsize)) - 1
            if index >= 0 and start + count <= self._ranges[index][1] and first < last:
                self._libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _DONTNEED)


def _mapped() -> list[tuple[int, int]]:
    found = []
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        if line.endswith(_WEIGHTS):
            first, _, last = line.split(maxsplit=1)[0].partition("-")
            found.append((int(first, 16), int(last, 16)))
    return sorted(found)
