"""Faults of one kind, gathered: a file with one mistake in every line is told of it once. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.errors import BadLine

# Up to this many lines, faults of one kind are shown line by line.
_MAX_ALIKE: Final = 20
_NUMBERS: Final = re.compile(r"\d+")


def alike(bad_lines: Sequence[BadLine]) -> list[tuple[BadLine, int]]:
    """Each fault with the number of lines it represents: one, or all lines of its kind where these are too many."""
    kinds: dict[tuple[str, str, str], list[BadLine]] = {}
    for bad in bad_lines:
        for fault in bad.faults:
            kind = (_NUMBERS.sub("#", fault.field), _NUMBERS.sub("#", fault.reason), fault.remedy)
            kinds.setdefault(kind, []).append(fault)
    found = [
        (fault, 1 if len(faults) <= _MAX_ALIKE else len(faults))
        for faults in kinds.values()
        for fault in (faults if len(faults) <= _MAX_ALIKE else faults[:1])
    ]
    return sorted(found, key=lambda item: item[0].line)
