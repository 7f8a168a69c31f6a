"""Refused answers: the way back to the queue, the end as not_accepted, and what a person's changes do to both."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select

from helix_jobs.storage import batch_changes, changes_in_steps, claims, publishing, results, retries
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.purging import begin_purge, end_purge, ended_batches, purge_lines
from helix_jobs.storage.refusals import StoredAnswer, refuse_stored
from helix_jobs.storage.schema import jobs
from helix_jobs.storage.schema import results as result_rows
from tests.store_helpers import (
    counts,
    ended,
    must_take,
    now,
    register,
    result_row,
    status,
    stored_batch,
    succeed,
)


def refuse(database, claimed, moment=None, worker_id="w1"):
    with database.write() as c:
        return claims.refuse(c, ended(claimed, worker_id), moment or now())


def end_refused(database, claimed, moment=None, answers=1, reason="too short"):
    rows = [result_row(choice=n, output_text=f"answer {n}", finish_reason="length") for n in range(answers)]
    with database.write() as c:
        return claims.finish_not_accepted(c, ended(claimed), rows, reason, moment or now())


def row_of(database, job_id):
    with database.read() as c:
        return c.execute(select(jobs).where(jobs.c.id == job_id)).one()


def answers_of(database, job_id):
    with database.read() as c:
        return c.execute(select(result_rows.c.output_text).where(result_rows.c.job_id == job_id)).scalars().all()


@pytest.fixture
def one(database):
    """A batch of one job, published once."""
    register(database, "w1", "w2")
    batch, ids = stored_batch(database, 1)
    with database.write() as c:
        publishing.mark_published(c, ids, now())
    return batch, ids[0]


def test_a_refused_answer_puts_the_job_back_to_be_published_at_once(database, one):
    batch, job_id = one
    claimed = must_take(database, job_id)
    assert claimed.tries == 0
    assert refuse(database, claimed)
    row = row_of(database, job_id)
    assert (row.state, row.tries, row.attempts) == ("queued", 1, 0)
    assert (row.published_at, row.claimed_at, row.worker_id) == (None, None, None)
    with database.read() as c:
        assert [job.id for job in publishing.publishable(c, 10)] == [job_id]
    assert must_take(database, job_id, "w2").tries == 1
    assert status(database, batch).refused == 1


def test_tries_are_counted_apart_from_attempts_lost_with_workers(database, one):
    _, job_id = one
    for tries in range(5):
        claimed = must_take(database, job_id)
        assert (claimed.attempts, claimed.tries) == (1, tries)
        assert refuse(database, claimed)
    for attempt in (1, 2):
        assert must_take(database, job_id).attempts == attempt
        with database.write() as c:
            assert retries.reclaim(c, "w1", now()).requeued == 1
    claimed = must_take(database, job_id)
    assert (claimed.attempts, claimed.tries) == (3, 5)
    assert refuse(database, claimed)
    assert row_of(database, job_id).attempts == 0, "an answer came: the next try has all attempts"


def test_a_refusal_repeated_after_an_uncertain_commit_is_counted_once(database, one):
    batch, job_id = one
    claimed, moment = must_take(database, job_id), now()
    assert refuse(database, claimed, moment)
    assert refuse(database, claimed, moment)
    again = must_take(database, job_id, "w2")
    assert refuse(database, claimed, moment), "another worker has the job by now"
    assert row_of(database, job_id).tries == 1
    assert status(database, batch).refused == 1
    assert not refuse(database, claimed), "a late write of the first worker"
    assert succeed(database, again, "w2")


def test_a_refusal_after_the_lease_was_lost_is_fenced(database, one):
    batch, job_id = one
    old = must_take(database, job_id)
    with database.write() as c:
        retries.reclaim(c, "w1", now())
    new = must_take(database, job_id, "w2")
    assert not refuse(database, old)
    assert not end_refused(database, old)
    assert succeed(database, new, "w2")
    assert (row_of(database, job_id).tries, status(database, batch).refused) == (0, 0)


def test_the_last_refused_answer_is_kept_with_its_reason(database, one):
    batch, job_id = one
    for _ in range(2):
        refuse(database, must_take(database, job_id))
    claimed, moment = must_take(database, job_id), now()
    for _ in range(2):
        assert end_refused(database, claimed, moment, answers=2)
    with database.read() as c:
        assert list(results.iter_results(c, batch)) == []
        found = list(results.iter_results(c, batch, include_failed=True))
    assert [(row.output_text, row.choice) for row in found] == [("answer 0", 0), ("answer 1", 1)]
    job = found[0]
    assert (job.state, job.error_code, job.error_message, job.tries) == ("failed", "not_accepted", "too short", 3)
    seen = status(database, batch)
    assert (seen.error_counts, seen.refused) == ({"not_accepted": 1}, 3)
    assert (seen.completion_tokens, seen.cut_off) == (0, 0), "tokens and cuts are those of succeeded jobs"


def test_counters_can_be_rebuilt(database):
    register(database, "w1")
    batch, ids = stored_batch(database, 4)
    refuse(database, must_take(database, ids[0]))
    end_refused(database, must_take(database, ids[1]))
    succeed(database, must_take(database, ids[2]))
    before = status(database, batch)
    with database.write() as c:
        assert counters.counters_agree(c, batch)
        counters.recount(c, batch)
        assert counters.counters_agree(c, batch)
    after = status(database, batch)
    assert (after.refused, after.error_counts, after.completion_tokens) == (2, before.error_counts, 7)


def test_a_retry_by_hand_begins_anew(database):
    register(database, "w1")
    batch, ids = stored_batch(database, 3)
    end_refused(database, must_take(database, ids[0]), answers=2)
    refuse(database, must_take(database, ids[1]))
    refuse(database, must_take(database, ids[2]))
    with database.write() as c:
        batch_changes.cancel_job(c, ids[2], now=now())
    assert status(database, batch).refused == 3
    assert changes_in_steps.retry_batch(database, batch) == 2
    assert [row_of(database, job_id).tries for job_id in ids] == [0, 1, 1], "a job that was refused once stays so"
    assert answers_of(database, ids[0]) == []
    assert status(database, batch).refused == 2
    assert counts(database, batch) == {"queued": 3}
    assert succeed(database, must_take(database, ids[0]))
    assert answers_of(database, ids[0]) == ["an answer"]
    assert status(database, batch).refused == 2


def test_a_cancelled_job_keeps_its_tries_and_takes_no_refusal(database, one):
    batch, job_id = one
    refuse(database, must_take(database, job_id))
    claimed = must_take(database, job_id)
    with database.write() as c:
        batch_changes.cancel_job(c, job_id, now=now())
    assert not refuse(database, claimed)
    assert not end_refused(database, claimed)
    assert (row_of(database, job_id).state, row_of(database, job_id).tries) == ("cancelled", 1)
    assert counts(database, batch) == {"cancelled": 1}


def stored_answer(database, job_id):
    return StoredAnswer(job_id, row_of(database, job_id).finished_at)


def refuse_answers(database, batch, answers, moment=None, max_tries=3):
    with database.write() as c:
        return refuse_stored(c, batch, answers, max_tries=max_tries, reason="the function said no", now=moment or now())


def test_a_stored_answer_is_refused_once_and_the_job_queued_again(database, one):
    batch, job_id = one
    succeed(database, must_take(database, job_id), finish_reason="length")
    answer, moment = stored_answer(database, job_id), now()
    for _ in range(2):
        assert refuse_answers(database, batch, [answer], moment) == 1
    row = row_of(database, job_id)
    assert (row.state, row.tries, row.attempts, row.published_at) == ("queued", 1, 0, None)
    assert answers_of(database, job_id) == []
    seen = status(database, batch)
    assert (seen.refused, seen.completion_tokens, seen.cut_off) == (1, 0, 0)
    claimed = must_take(database, job_id, "w2")
    assert refuse_answers(database, batch, [answer]) == 0, "the answer is gone, and another is on its way"
    assert (claimed.tries, succeed(database, claimed, "w2")) == (1, True)
    assert refuse_answers(database, batch, [answer]) == 0, "this is not the answer that was looked at"
    assert answers_of(database, job_id) == ["an answer"]


def test_the_last_stored_answer_is_kept(database, one):
    batch, job_id = one
    for tries in (1, 2):
        succeed(database, must_take(database, job_id))
        moment = now()
        for _ in range(2):
            assert refuse_answers(database, batch, [stored_answer(database, job_id)], moment, max_tries=2) == 1
        assert row_of(database, job_id).tries == tries
    row = row_of(database, job_id)
    assert (row.state, row.error_code, row.error_message) == ("failed", "not_accepted", "the function said no")
    assert answers_of(database, job_id) == ["an answer"]
    assert status(database, batch).error_counts == {"not_accepted": 1}


def test_nothing_is_refused_where_nothing_would_run_again(database, one):
    batch, job_id = one
    succeed(database, must_take(database, job_id))
    answer = stored_answer(database, job_id)
    changes_in_steps.cancel_batch(database, batch)
    assert refuse_answers(database, batch, [answer]) == 0
    with database.read() as c:
        (ended_batch,) = ended_batches(c)
    with database.write() as c:
        assert begin_purge(c, ended_batch, now())
    assert refuse_answers(database, batch, [answer]) == 0
    assert answers_of(database, job_id) == ["an answer"]


def test_only_answers_of_the_batch_and_of_that_moment_are_refused(database):
    register(database, "w1")
    batch, (job_id, waiting) = stored_batch(database, 2)
    other, _ = stored_batch(database, 1)
    succeed(database, must_take(database, job_id))
    answer = stored_answer(database, job_id)
    assert refuse_answers(database, other, [answer]) == 0
    assert refuse_answers(database, batch, [StoredAnswer(job_id, answer.finished_at - timedelta(seconds=1))]) == 0
    assert refuse_answers(database, batch, [StoredAnswer(waiting, answer.finished_at)]) == 0
    assert counts(database, batch) == {"succeeded": 1, "queued": 1}


def test_a_job_need_not_run_alone_after_it_gave_an_answer(database, one):
    """Its earlier attempts died with their workers, but this one ended in order."""
    _, job_id = one
    for _ in range(2):
        must_take(database, job_id)
        with database.write() as c:
            retries.reclaim(c, "w1", now())
    refuse(database, must_take(database, job_id))
    with database.read() as c:
        assert not retries.awaits_last_attempt(c, job_id)


def test_a_purge_removes_refused_answers_too(database, one):
    batch, job_id = one
    end_refused(database, must_take(database, job_id))
    with database.read() as c:
        (ended_batch,) = ended_batches(c)
    assert (ended_batch.failed, ended_batch.succeeded) == (1, 0)
    with database.write() as c:
        assert begin_purge(c, ended_batch, now())
        assert purge_lines(c, batch, 0, 1).results == 1
        assert end_purge(c, batch)
    assert answers_of(database, job_id) == []
