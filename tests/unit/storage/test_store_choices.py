"""Jobs with several answers: a row for each, one transaction for all, and pages that end between two of them."""

from __future__ import annotations

import pytest

from helix_jobs.storage import claims, purging, results
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.states import JobState
from tests.store_helpers import counts, ended, fail, must_take, now, register, result_row, status, stored_batch, succeed


def finish(database, job_id, number):
    claimed = must_take(database, job_id)
    answers = [result_row(choice=n, output_text=f"{job_id}/{n}", finish_reason="length") for n in range(number)]
    with database.write() as c:
        assert claims.finish_succeeded(c, ended(claimed), answers, now())
    return claimed, answers


@pytest.mark.parametrize("order", ["line", "completion"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_no_page_loses_or_repeats_an_answer(database, chunk, order):
    register(database, "w1")
    batch, ids = stored_batch(database, 4)
    for job_id, number in zip(ids, (3, 1, 4), strict=False):
        finish(database, job_id, number)
    fail(database, must_take(database, ids[3]))
    with database.read() as c:
        found = list(results.iter_results(c, batch, order=order, include_failed=True, chunk=chunk))
    assert [(row.line, row.choice) for row in found] == [
        *((1, n) for n in range(3)),
        (2, 0),
        *((3, n) for n in range(4)),
        (4, 0),
    ]
    assert [row.output_text for row in found[:3]] == [f"{ids[0]}/{n}" for n in range(3)]
    assert (found[-1].state, found[-1].output_text) == (JobState.FAILED, None)


def test_status_counts_jobs_and_adds_up_the_answers(database):
    register(database, "w1")
    batch, ids = stored_batch(database, 3)
    finish(database, ids[0], 3)
    finish(database, ids[1], 1)
    found = status(database, batch)
    assert counts(database, batch) == {"succeeded": 2, "queued": 1}
    assert (found.prompt_tokens, found.completion_tokens, found.cut_off) == (10, 28, 4)
    with database.write() as c:
        assert counters.counters_agree(c, batch)
        counters.recount(c, batch)
    assert status(database, batch).completion_tokens == 28


def test_a_purge_measures_each_job_once_and_all_of_its_answers(database):
    register(database, "w1")
    batch, ids = stored_batch(database, 3)
    finish(database, ids[0], 3)
    finish(database, ids[1], 1)
    fail(database, must_take(database, ids[2]))
    with database.read() as c:
        one, two, three, whole = (
            purging.measure_lines(c, batch, after, last) for after, last in ((0, 1), (1, 2), (2, 3), (0, 3))
        )
    assert (one.jobs, one.results) == (1, 3)
    assert one.bytes == two.bytes + 2 * len(f"{ids[0]}/0")
    assert (whole.jobs, whole.results) == (3, 4)
    assert whole.bytes == one.bytes + two.bytes + three.bytes


@pytest.mark.parametrize(
    ("told", "size"),
    [
        ({"reasoning_text": "hm, Öl"}, 7),
        ({"tool_calls": [{"id": "a"}]}, len('[{"id":"a"}]')),
        ({"scores": {"yes": {"sum": -1.0}}}, len('{"yes":{"sum":-1.0}}')),
        ({"logprobs": b"\x00" * 100}, 100),
        ({"prompt_logprobs": b"\xff" * 300}, 300),
    ],
)
def test_a_purge_measures_all_that_belongs_to_an_answer(database, told, size):
    register(database, "w1")
    batch, ids = stored_batch(database, 2)
    succeed(database, must_take(database, ids[0]))
    succeed(database, must_take(database, ids[1]), **told)
    with database.read() as c:
        plain, full = (purging.measure_lines(c, batch, line, line + 1).bytes for line in (0, 1))
    assert full - plain == size


def test_a_late_write_stores_none_of_its_answers(database):
    register(database, "w1")
    batch, ids = stored_batch(database, 1)
    claimed, answers = finish(database, ids[0], 2)
    with database.write() as c:
        late = [result_row(choice=n, output_text="late") for n in range(5)]
        assert not claims.finish_succeeded(c, ended(claimed), late, now())
    with database.read() as c:
        found = [row.output_text for row in results.iter_results(c, batch)]
    assert found == [answer.output_text for answer in answers]
