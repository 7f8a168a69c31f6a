"""How deep parsed JSON is nested, at the edges of a limit and far beyond any stack."""

from __future__ import annotations

import pytest

from helix_jobs.json_depth import is_deeper


def nested(levels: int) -> object:
    value: object = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value, "b": 2}
    return value


@pytest.mark.parametrize("levels", [0, 1, 2, 64])
def test_each_object_and_list_is_a_level(levels: int) -> None:
    assert not is_deeper(nested(levels), levels)
    assert is_deeper(nested(levels + 1), levels)


def test_the_deepest_part_counts() -> None:
    assert is_deeper([1, [], {"a": [[]]}], 3)
    assert not is_deeper([1, [], {"a": [[]]}], 4)


def test_depth_beyond_the_stack_is_told() -> None:
    assert is_deeper(nested(100_000), 64)
