"""Products of parameters: which of them the fast tests take."""

from __future__ import annotations

import pytest

from tests.crossed import crossed


def fast(rows: int, columns: int, each: int) -> list[set[int]]:
    """For each row the columns that are not slow."""
    found: list[set[int]] = [set() for _ in range(rows)]
    for one in crossed(range(rows), [(column,) for column in range(columns)], each):
        row, column = one.values
        if not one.marks:
            found[row].add(column)
    return found


@pytest.mark.parametrize(
    ("rows", "columns", "each"), [(5, 4, 2), (5, 3, 2), (9, 6, 4), (4, 2, 1), (2, 4, 2), (3, 3, 3)]
)
def test_every_row_has_as_many_and_every_column_is_there(rows: int, columns: int, each: int) -> None:
    found = fast(rows, columns, each)
    assert {len(own) for own in found} == {each}
    assert set().union(*found) == set(range(columns))


def test_columns_meet_other_columns_after_each_cycle() -> None:
    assert fast(6, 4, 2) == [{0, 1}, {2, 3}, {1, 2}, {3, 0}, {2, 3}, {0, 1}]


def test_every_second_row_meets_every_column() -> None:
    """Kinds of rows often alternate: one kind would else never be fast with half of the columns."""
    found = fast(8, 4, 2)
    assert set().union(*found[::2]) == set().union(*found[1::2]) == {0, 1, 2, 3}
