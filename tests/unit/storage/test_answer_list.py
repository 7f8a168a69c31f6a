"""Pages of a batch's answers: every filter, order and direction against the plain rule, on both databases."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
from sqlalchemy import select, text, update

from helix_jobs.errors import InvalidFieldError, NotFoundError
from helix_jobs.storage import claims
from helix_jobs.storage.answer_list import list_answers
from helix_jobs.storage.answer_records import AnswerFilter, AnswerMark, AnswerOrder, AnswerQuery, Effort
from helix_jobs.storage.schema import jobs
from helix_jobs.storage.states import JobState
from tests.store_helpers import ended, must_take, now, register, result_row, stored_batch
from tests.varied_batches import varied_batch_of

COUNT = 2_100
# One slice a page: what a search through a million rows does, at any speed of the machine.
MUCH = Effort(seconds=60.0)
ONE_SLICE = Effort(seconds=0.0, first_slice=300, first_texts=200)

# Filter -> whether a line of a varied batch matches.
FILTERS = {
    "all": (AnswerFilter(), lambda _: True),
    "failed": (AnswerFilter(state=JobState.FAILED), lambda i: i % 1000 == 0),
    "cancelled": (AnswerFilter(state=JobState.CANCELLED), lambda i: i % 1500 == 7),
    "succeeded": (AnswerFilter(state=JobState.SUCCEEDED), lambda i: i % 1000 and i % 1500 != 7),
    "code": (AnswerFilter(error_code="prompt_too_long"), lambda i: i % 1000 == 0 and i % 10_000),
    "cut off": (AnswerFilter(finish_reason="length"), lambda i: i % 5000 == 3),
    "thought": (AnswerFilter(mark=AnswerMark.THOUGHT), lambda i: i % 777 == 5),
    "refused": (AnswerFilter(mark=AnswerMark.REFUSED), lambda i: i % 4000 == 11),
    "nothing": (AnswerFilter(mark=AnswerMark.BROKEN_FORM), lambda _: False),
    "text": (AnswerFilter(text="LINE 17"), lambda i: str(i).startswith("17") and i % 1000 and i % 1500 != 7),
    "text and state": (AnswerFilter(state=JobState.FAILED, text="question 2000"), lambda i: i == 2000),
}

SET_REQUEST = {
    "sqlite": text("UPDATE jobs SET request = :request WHERE id = :id"),
    "postgresql": text("UPDATE jobs SET request = CAST(:request AS json) WHERE id = :id"),
}


@pytest.fixture
def batch(database):
    register(database, "w1")
    return varied_batch_of(database, COUNT, answer_bytes=60)


def joined(pages):
    return list(chain.from_iterable(pages))


def walk(database, batch_id, query, effort=MUCH, *, backwards=False):
    """The lines of all pages from one end to the other, each page's in the order of the list, and the stops."""
    pages, stops = [], []
    while True:
        with database.read() as c:
            page = list_answers(c, batch_id, query, effort)
        pages.append([head.line for head in page.heads])
        stops.append(page.looked_to)
        place = page.before if backwards else page.after
        if place is None:
            return pages, stops
        query = replace(query, **{"before" if backwards else "after": place})


@pytest.mark.thorough(fast=6)
@pytest.mark.parametrize("name", FILTERS)
def test_pages_have_every_matching_line_once_in_order(database, batch, name):
    which, matches = FILTERS[name]
    expected = [line for line in range(1, COUNT + 1) if matches(line)]
    limit = 400 if name in ("all", "succeeded") else 7
    for order, wanted in ((AnswerOrder.LINE, expected), (AnswerOrder.NEWEST, expected[::-1])):
        query = AnswerQuery(which=which, order=order, limit=limit)
        pages, stops = walk(database, batch, query)
        assert joined(pages) == wanted
        assert all(len(page) == limit for page in pages[:-1])
        assert set(stops) == {None}
        # From behind the last row back to the first.
        end = "3000" if order == AnswerOrder.LINE else "0-0"
        pages, _ = walk(database, batch, replace(query, before=end), backwards=True)
        assert joined(reversed(pages)) == wanted


@pytest.mark.thorough(fast=4)
@pytest.mark.parametrize("name", ["text", "thought", "nothing"])
def test_a_page_that_took_long_enough_says_how_far_it_looked(database, batch, name):
    which, matches = FILTERS[name]
    expected = [line for line in range(1, COUNT + 1) if matches(line)]
    pages, stops = walk(database, batch, AnswerQuery(which=which), ONE_SLICE)
    assert joined(pages) == expected
    assert stops[-1] is None
    # A full page says nothing: it did not stop for the time.
    slice_rows = 200 if name == "text" else 300
    assert stops[:2] == [slice_rows, 2 * slice_rows]
    newest, stops = walk(database, batch, AnswerQuery(which=which, order=AnswerOrder.NEWEST), ONE_SLICE)
    assert joined(newest) == expected[::-1]
    assert stops[0] == COUNT - slice_rows + 1
    back, _ = walk(database, batch, AnswerQuery(which=which, before="3000"), ONE_SLICE, backwards=True)
    assert joined(reversed(back)) == expected


def test_a_neighbour_that_is_not_there_is_not_named(database, batch):
    with database.read() as c:
        first = list_answers(c, batch, AnswerQuery(limit=100))
        second = list_answers(c, batch, AnswerQuery(limit=100, after=first.after))
        back = list_answers(c, batch, AnswerQuery(limit=100, before=second.before))
        past = list_answers(c, batch, AnswerQuery(after="2147483648"))
    assert (first.before, first.after) == (None, "100")
    assert (second.before, second.after) == ("101", "200")
    assert (back.before, back.after) == (None, "100")
    assert (past.heads, past.before, past.after) == ((), None, None)


def test_rows_have_the_beginnings_of_their_texts(database):
    register(database, "w1")
    batch_id, ids = stored_batch(database, 3)
    claimed = must_take(database, ids[1])
    answers = [
        result_row(choice=0, output_text="ä" * 5000, reasoning_text="hm", finish_reason="length", is_valid=False),
        result_row(choice=1, tool_calls=[{"type": "function"}]),
    ]
    with database.write() as c:
        assert claims.finish_succeeded(c, ended(claimed), answers, now())
    must_take(database, ids[2])
    with database.read() as c:
        page = list_answers(c, batch_id, AnswerQuery())
        tools = list_answers(c, batch_id, AnswerQuery(which=AnswerFilter(mark=AnswerMark.CALLED_TOOLS)))
        runs = list_answers(c, batch_id, AnswerQuery(which=AnswerFilter(state=JobState.RUNNING)))
    queued, long, _ = page.heads
    assert (queued.state, queued.choices, queued.output_text, queued.finished_at) == (JobState.QUEUED, 0, None, None)
    assert (long.state, long.choices, long.finish_reason, long.is_valid) == (JobState.SUCCEEDED, 2, "length", False)
    assert (long.output_text, long.reasoning_text, long.called_tools) == ("ä" * 401, "hm", False)
    assert long.request is not None
    assert '"Wörter 2"' in long.request
    assert [head.line for head in tools.heads] == [2]
    assert [head.line for head in runs.heads] == [3]


def test_a_text_is_found_wherever_a_person_or_the_model_wrote_it(database):
    register(database, "w1")
    batch_id, ids = stored_batch(database, 7)
    requests = {
        0: '{"messages":[{"role":"user","content":[{"type":"text","text":"Sag \\"Grüße\\"\\nbitte"}]}]}',
        1: '{"prompt":"\\u0000 nul","metadata":{"team":"GRÜẞE"}}',
        # Written by other programs, with escapes.
        2: '{"prompt":"Gr\\u00fc\\u00dfe"}',
    }
    with database.write() as c:
        for number, request in requests.items():
            c.execute(SET_REQUEST[database.dialect], {"request": request, "id": ids[number]})
        c.execute(update(jobs).where(jobs.c.id == ids[3]).values(custom_id="viele-grüsse"))
    for number, row in (
        (4, result_row(output_text="Liebe GRÜSSE!")),
        (5, result_row(reasoning_text="grüße?", output_text="")),
        (6, result_row(tool_calls=[{"function": {"name": "mail", "arguments": '{"text": "Grüße"}'}}])),
    ):
        claimed = must_take(database, ids[number])
        with database.write() as c:
            assert claims.finish_succeeded(c, ended(claimed), [row], now())

    def lines(wanted):
        with database.read() as c:
            return [head.line for head in list_answers(c, batch_id, AnswerQuery(which=AnswerFilter(text=wanted))).heads]

    assert lines("grüße") == [1, 2, 3, 4, 5, 6, 7]
    assert lines('"Grüße"\nbitte') == [1]
    assert lines("mail") == [7]
    # Words of the form, which nobody wrote.
    assert lines("user") == lines("messages") == lines("function") == []


def test_an_unreadable_row_withholds_no_other(sqlite_database):
    register(sqlite_database, "w1")
    batch_id = varied_batch_of(sqlite_database, 50, answer_bytes=10)
    with sqlite_database.write() as c:
        c.execute(text("UPDATE results SET output_text = CAST(x'ff41' AS TEXT) WHERE job_id % 50 = 20"))
        bad = c.execute(select(jobs.c.line).where(jobs.c.id % 50 == 20)).scalar_one()
    with sqlite_database.read() as c:
        page = list_answers(c, batch_id, AnswerQuery())
        found = list_answers(c, batch_id, AnswerQuery(which=AnswerFilter(text="answer to line")))
    assert [head.line for head in page.heads] == list(range(1, 51))
    assert [head.line for head in page.heads if head.state is None] == [bad]
    assert [head.line for head in found.heads] == [line for line in range(1, 51) if line not in (bad, 7)]


@pytest.mark.parametrize("place", ["", "x", "-1", "1-2", "1" * 20, "\u0661"])
def test_a_place_that_is_none_is_refused(sqlite_database, place):
    batch_id, _ = stored_batch(sqlite_database, 1)
    with sqlite_database.read() as c, pytest.raises(InvalidFieldError, match="no place"):
        list_answers(c, batch_id, AnswerQuery(after=place))


def test_what_cannot_be_is_said(sqlite_database):
    batch_id, _ = stored_batch(sqlite_database, 1)
    running = AnswerFilter(state=JobState.RUNNING)
    with sqlite_database.read() as c:
        with pytest.raises(InvalidFieldError, match="by line"):
            list_answers(c, batch_id, AnswerQuery(which=running, order=AnswerOrder.NEWEST))
        with pytest.raises(NotFoundError):
            list_answers(c, "b-none", AnswerQuery())
