"""Which tests are in the fast suite, and which are in the thorough one.

``@pytest.mark.thorough`` takes a test of a second or more out of the fast suite. ``@pytest.mark.thorough(fast=3)``
takes out all but three of its cases, which are spread evenly over them. Continuous integration runs both suites.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest


def spread(name: str, cases: int, fast: int) -> frozenset[int]:
    """So many of the numbers from 0 to ``cases``, evenly spread.

    Where they begin depends on the name: else two databases would always be SQLite, and dtypes float32.
    """
    if fast >= cases:
        return frozenset(range(cases))
    begin = zlib.crc32(name.encode())
    return frozenset((begin + index * cases // fast) % cases for index in range(fast))


def leave_fast(items: Iterable[pytest.Item]) -> None:
    """Take the mark from those cases that are to be fast all the same, and from what neither suite has."""
    cases = defaultdict(list)
    for item in items:
        mark = item.get_closest_marker("thorough")
        if mark is None:
            continue
        if item.get_closest_marker("slow") or item.get_closest_marker("soak"):
            _take_mark(item)
        elif mark.kwargs:
            cases[item.nodeid.partition("[")[0]].append((item, mark.kwargs["fast"]))
    for name, found in cases.items():
        for index in spread(name, len(found), found[0][1]):
            _take_mark(found[index][0])


def _take_mark(item: pytest.Item) -> None:
    item.own_markers[:] = [mark for mark in item.own_markers if mark.name != "thorough"]
