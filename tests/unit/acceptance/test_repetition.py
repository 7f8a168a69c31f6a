"""Loops at a text's end are found, whatever their unit; texts that merely have a rhythm are not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.acceptance.repetition import END_CHARS, LEAST_CHARS, LEAST_REPEATS, repetition_at_end

STORY = (
    "The river rose in the night, and by the morning the lower fields stood under water. Nobody had seen the like "
    "since the year the mill burned down, and those who remembered it said nothing."
)


def by_definition(text):
    """The longest end that is one unit, four times or more, and a part of it: tried for each length and unit."""
    for chars in range(len(text), LEAST_CHARS - 1, -1):
        end = text[-chars:]
        for unit in range(1, chars // LEAST_REPEATS + 1):
            if end[unit:] == end[:-unit]:
                return (unit, chars)
    return None


@pytest.mark.parametrize("unit", ["x", "ha ", "\n", "I am sorry. ", STORY[:100], "né🙂"])
def test_a_loop_is_found_also_where_it_breaks_off_within_its_unit(unit):
    times = -(-LEAST_CHARS // len(unit)) + LEAST_REPEATS
    for broken in range(len(unit)):
        found = repetition_at_end(f"{STORY}|" + unit * times + unit[:broken])
        assert found is not None
        assert found.unit_chars == len(unit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        STORY,
        STORY * 3,
        "ha " * 200 + STORY,
        "-" * (LEAST_CHARS - 1),
        "\n".join(f"| item {n} | {n * 7} EUR |" for n in range(100)),
        ", ".join(str(n) for n in range(500)),
    ],
)
def test_what_does_not_end_in_a_loop_is_left_alone(text):
    assert repetition_at_end(text) is None


@given(st.text("ab", max_size=6), st.text("ab", min_size=1, max_size=60), st.integers(1, 40), st.text("ab", max_size=3))
def test_it_is_what_the_definition_says(before, unit, times, after):
    text = (before + unit * times + after)[-250:]
    found = repetition_at_end(text)
    assert (None if found is None else (found.unit_chars, found.chars)) == by_definition(text)


def test_only_the_end_is_looked_at():
    noise = "".join(random.Random(1).choices("abcdefgh", k=END_CHARS // LEAST_REPEATS + 1))
    assert repetition_at_end(noise * 9) is None, "a unit longer than a quarter of the end"
    assert repetition_at_end(noise[2:] * 9) is not None
