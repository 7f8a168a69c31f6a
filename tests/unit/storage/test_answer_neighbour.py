"""The neighbours of a line in a filtered list, against the plain rule, on both databases."""

from __future__ import annotations

import pytest

from helix_jobs.errors import NotFoundError
from helix_jobs.storage.answer_neighbour import Neighbour, neighbour
from helix_jobs.storage.answer_records import AnswerFilter, AnswerMark, AnswerOrder, AnswerQuery, Effort
from helix_jobs.storage.states import JobState
from tests.store_helpers import register, stored_batch
from tests.varied_batches import varied_batch_of

COUNT = 2_100
MUCH = Effort(seconds=60.0)
ONE_SLICE = Effort(seconds=0.0, first_slice=300, first_texts=200)
# Filter -> the lines of a varied batch that match it.
FILTERS = {
    "failed": (AnswerFilter(state=JobState.FAILED), [1000, 2000]),
    "thought": (AnswerFilter(mark=AnswerMark.THOUGHT), [5, 782, 1559]),
    "text": (AnswerFilter(text="LINE 177"), [177, *range(1770, 1780)]),
}


@pytest.fixture
def batch(database):
    register(database, "w1")
    return varied_batch_of(database, COUNT, answer_bytes=60)


@pytest.mark.thorough(fast=6)
@pytest.mark.parametrize("order", list(AnswerOrder))
@pytest.mark.parametrize("name", FILTERS)
def test_neighbours_are_those_of_the_list(database, batch, name, order):
    which, lines = FILTERS[name]
    query = AnswerQuery(which=which, order=order)
    listed = lines if order == AnswerOrder.LINE else lines[::-1]
    with database.read() as c:
        for before, line, behind in zip([None, *listed], listed, [*listed[1:], None], strict=False):
            assert neighbour(c, batch, line, query, MUCH, backwards=False) == Neighbour(line=behind)
            assert neighbour(c, batch, line, query, MUCH, backwards=True) == Neighbour(line=before)


def test_a_line_that_does_not_match_has_neighbours(database, batch):
    query = AnswerQuery(which=AnswerFilter(state=JobState.FAILED))
    with database.read() as c:
        assert neighbour(c, batch, 1500, query, MUCH, backwards=False) == Neighbour(line=2000)
        assert neighbour(c, batch, 1500, query, MUCH, backwards=True) == Neighbour(line=1000)


@pytest.mark.parametrize("backwards", [False, True])
def test_looking_that_takes_long_says_where_to_go_on(database, batch, backwards):
    query = AnswerQuery(which=AnswerFilter(text="nowhere"))
    line, steps = (COUNT, 0) if backwards else (1, 0)
    with database.read() as c:
        while (found := neighbour(c, batch, line, query, ONE_SLICE, backwards=backwards)).go_on is not None:
            line, steps = int(found.go_on), steps + 1
    assert found == Neighbour()
    assert steps == 10


def test_what_has_not_ended_is_not_in_the_list_of_what_ended(database):
    batch, _ = stored_batch(database, 2)
    with database.read() as c:
        assert neighbour(c, batch, 1, AnswerQuery(order=AnswerOrder.NEWEST), MUCH, backwards=False) == Neighbour()
        with pytest.raises(NotFoundError, match="no line 9"):
            neighbour(c, batch, 9, AnswerQuery(), MUCH, backwards=False)
