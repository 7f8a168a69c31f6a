"""Products of parameters, of which the fast tests take a part: each value of either side with some of the other."""

from __future__ import annotations

from math import lcm
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _pytest.mark import ParameterSet


def crossed(rows: Iterable[Any], columns: Iterable[tuple[Any, ...]], each: int) -> list[ParameterSet]:
    """Every row with every column; in the fast tests a row has ``each`` of the columns in turn, the others are slow.

    Once the turns are where they began, they go on one column further: else the same columns would always be together,
    and rows of a kind that alternates would never meet half of them.
    """
    rows, columns = list(rows), list(columns)
    assert each * len(rows) >= len(columns), "a column would never be fast"
    cycle = lcm(each, len(columns))
    firsts = [number * each + number * each // cycle for number in range(len(rows))]
    return [
        pytest.param(row, *column, marks=() if (place - first) % len(columns) < each else pytest.mark.slow)
        for row, first in zip(rows, firsts, strict=True)
        for place, column in enumerate(columns)
    ]
