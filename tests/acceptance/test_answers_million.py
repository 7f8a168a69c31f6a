"""The list of a million answers: filters and searches find their rows, page by page. Run with -m slow -s."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from helix_jobs.storage.answer_list import list_answers
from helix_jobs.storage.answer_records import AnswerFilter, AnswerMark, AnswerOrder, AnswerQuery
from helix_jobs.storage.states import JobState
from tests.store_helpers import register
from tests.varied_batches import varied_batch_of

LINES = 1_000_000
# What is asked for -> the query, how many pages to walk, and whether a line matches; None where the page tells.
WALKS = {
    "first page": (AnswerQuery(), 1, lambda line: line <= 50),
    "from the middle": (AnswerQuery(after="500000"), 1, lambda line: 500_000 < line <= 500_050),
    "back from the end": (AnswerQuery(before=str(LINES + 1)), 1, lambda line: line > LINES - 50),
    "newest": (AnswerQuery(order=AnswerOrder.NEWEST), 1, lambda line: line > LINES - 50),
    "failed": (AnswerQuery(which=AnswerFilter(state=JobState.FAILED)), 20, lambda line: line % 1000 == 0),
    "deadline": (AnswerQuery(which=AnswerFilter(error_code="deadline")), 2, lambda line: line % 10_000 == 0),
    "running": (AnswerQuery(which=AnswerFilter(state=JobState.RUNNING)), 1, lambda _: False),
    "cut off": (AnswerQuery(which=AnswerFilter(finish_reason="length")), None, lambda line: line % 5000 == 3),
    "form not kept": (AnswerQuery(which=AnswerFilter(mark=AnswerMark.BROKEN_FORM)), None, lambda _: False),
    "queued": (AnswerQuery(which=AnswerFilter(state=JobState.QUEUED)), None, lambda _: False),
    "one text": (AnswerQuery(which=AnswerFilter(text="LINE 777778.")), None, lambda line: line == 777_778),
}


@pytest.mark.slow
def test_pages_of_a_million_answers(database):
    register(database, "w1")
    batch_id = varied_batch_of(database, LINES)
    print()  # noqa: T201  (the figures are the reader's)
    for name, (first, most, matches) in WALKS.items():
        query = first
        found, seconds, cpu = [], [], time.process_time()
        while most is None or len(seconds) < most:
            started = time.perf_counter()
            with database.read() as c:
                page = list_answers(c, batch_id, query)
            seconds.append(time.perf_counter() - started)
            found += [head.line for head in page.heads]
            if page.after is None:
                break
            query = replace(query, after=page.after, before=None)
        print(  # noqa: T201  (see above)
            f"{database.dialect}: {name}: {len(found):,} rows in {len(seconds)} pages, the slowest "
            f"{max(seconds) * 1e3:.0f} ms, altogether {sum(seconds):.1f} s and {time.process_time() - cpu:.1f} s of "
            "this process's processor time"
        )
        assert sorted(found) == [line for line in range(1, LINES + 1) if matches(line)]
