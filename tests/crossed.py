"""Products of parameters, of which the fast tests take a part: each value of either side with some of the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _pytest.mark import ParameterSet


def crossed(rows: Iterable[Any], columns: Iterable[tuple[Any, ...]], each: int) -> list[ParameterSet]:
    """Every row with every column; in the fast tests a row has ``each`` of the columns in turn, the others are slow."""
    rows, columns = list(rows), list(columns)
    assert each * len(rows) >= len(columns), "a column would never be fast"
    return [
        pytest.param(row, *column, marks=() if (place - number * each) % len(columns) < each else pytest.mark.slow)
        for number, row in enumerate(rows)
        for place, column in enumerate(columns)
    ]
