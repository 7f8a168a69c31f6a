"""Rows become row groups by their size, however large one row is."""

from __future__ import annotations

from helix_jobs.results.file_writers import ROW_GROUP_BYTES, row_groups


def sizes(rows) -> list[int]:
    return [len(group) for group in row_groups(rows)]


def test_a_group_ends_by_the_size_of_its_rows_whatever_their_number():
    large = {"text": "x" * (ROW_GROUP_BYTES // 4)}
    assert sizes([large] * 9) == [4, 4, 1]
    assert sizes([{"nested": [{"a": large["text"]}], "bytes": b"x"}] * 5) == [4, 1]
    assert sizes([{"text": "x" * 2 * ROW_GROUP_BYTES}] * 3) == [1, 1, 1]
    assert len(sizes({"n": n} for n in range(20_000))) == 1
    assert sizes([]) == []


def test_no_more_than_a_group_is_taken_before_it_is_given():
    taken = []

    def rows():
        for number in range(1000):
            taken.append(number)
            yield {"text": "x" * (ROW_GROUP_BYTES // 10)}

    groups = row_groups(rows())
    assert len(next(groups)) == len(taken) <= 10
