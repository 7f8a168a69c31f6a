from __future__ import annotations

import pytest

from helix_jobs.errors import NotFoundError
from helix_jobs.storage import batch_changes, changes_in_steps, claims, publishing, results
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.records import FinishedJob
from helix_jobs.storage.states import JobState
from helix_jobs.storage.status import batch_status, list_batches
from tests.store_helpers import counts, fail, get_job, must_take, now, register, status, stored_batch, succeed, take


@pytest.fixture
def mixed(database):
    """One batch: succeeded, failed, running, published, queued."""
    register(database, "w1", "w2")
    batch_id, ids = stored_batch(database, 5)
    succeed(database, must_take(database, ids[0]))
    fail(database, must_take(database, ids[1]))
    running = must_take(database, ids[2])
    with database.write() as c:
        publishing.mark_published(c, ids[3:4], now())
    return batch_id, ids, running


def test_cancel_ends_what_has_not_ended(database, mixed):
    batch_id, ids, running = mixed
    assert changes_in_steps.cancel_batch(database, batch_id) == 3
    assert counts(database, batch_id) == {"succeeded": 1, "failed": 1, "cancelled": 3}
    seen = status(database, batch_id)
    assert seen.state == "cancelled"
    assert seen.done
    assert seen.cancelled_at is not None
    assert not succeed(database, running)
    assert take(database, ids[4]) is None
    with database.read() as c:
        assert claims.held_leases(c, "w1") == {}
        assert publishing.publishable(c, 10) == []
        assert len(publishing.published_queued(c)) == 0
    assert changes_in_steps.cancel_batch(database, batch_id) == 0


def test_retry_queues_what_did_not_succeed_and_keeps_the_fence(database, mixed):
    batch_id, ids, running = mixed
    changes_in_steps.cancel_batch(database, batch_id)
    assert changes_in_steps.retry_batch(database, batch_id) == 4
    assert counts(database, batch_id) == {"succeeded": 1, "queued": 4}
    seen = status(database, batch_id)
    assert (seen.cancelled_at, seen.error_counts, seen.finished_at) == (None, {}, None)
    assert not succeed(database, running)
    again = must_take(database, running.id)
    assert (again.attempts, again.lease) == (1, running.lease + 1)
    assert not succeed(database, running)
    assert succeed(database, again)
    with database.read() as c:
        job = get_job(c, ids[1])
        assert (job.error_code, job.error_message, job.finished_at, job.attempts) == (None, None, None, 0)
        assert [job.id for job in publishing.publishable(c, 10)] == [ids[1], ids[3], ids[4]]
    assert changes_in_steps.retry_batch(database, batch_id) == 0


def test_retry_after_a_retry_still_counts_right(database, mixed):
    batch_id, ids, _ = mixed
    for _ in range(3):
        changes_in_steps.retry_batch(database, batch_id)
        fail(database, must_take(database, ids[1]), code="out_of_memory")
        assert status(database, batch_id).error_counts == {"out_of_memory": 1}


def test_one_job_is_cancelled_alone(database, mixed):
    batch_id, ids, running = mixed
    with database.write() as c:
        assert batch_changes.cancel_job(c, running.id, now=now()) == 1
        assert batch_changes.cancel_job(c, running.id, now=now()) == 0
        assert batch_changes.cancel_job(c, ids[0], now=now()) == 0
    assert not succeed(database, running)
    assert counts(database, batch_id) == {"succeeded": 1, "failed": 1, "cancelled": 1, "queued": 2}
    assert status(database, batch_id).state == "running"


def test_unknown_names_are_refused(database):
    for change in (changes_in_steps.cancel_batch, changes_in_steps.retry_batch):
        with pytest.raises(NotFoundError, match="b-none"):
            change(database, "b-none")
    with database.write() as c:
        for call in (batch_status, results.iter_results):
            with pytest.raises(NotFoundError, match="b-none"):
                call(c, "b-none")
        with pytest.raises(NotFoundError, match="b-none"):
            results.iter_jobs(c, "b-none", JobState.QUEUED)
        with pytest.raises(NotFoundError, match="no job 77; `helix status BATCH --jobs`"):
            batch_changes.cancel_job(c, 77, now=now())


def test_recount_says_what_the_counters_said(database, mixed):
    batch_id, _, _ = mixed
    changes_in_steps.cancel_batch(database, batch_id)
    before = status(database, batch_id)
    with database.write() as c:
        counters.recount(c, batch_id)
    after = status(database, batch_id)
    assert after.counts == before.counts
    assert after.error_counts == before.error_counts
    assert (after.prompt_tokens, after.accepted_tokens) == (before.prompt_tokens, before.accepted_tokens)


def test_batches_are_listed_newest_first(database):
    ids = [stored_batch(database, n)[0] for n in (1, 2, 3)]
    with database.read() as c:
        assert [(row.id, row.total) for row in list_batches(c, 2)] == [(ids[2], 3), (ids[1], 2)]
        assert [row.id for row in list_batches(c, 2, 2)] == [ids[0]]


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_results_stream_in_both_orders(database, chunk):
    register(database, "w1")
    batch_id, ids = stored_batch(database, 6)
    moment = now()
    for position in (4, 0, 2):
        claimed = must_take(database, ids[position])
        with database.write() as c:
            # The same moment for all: the id must break the tie, or pages would lose rows.
            row = FinishedJob(claimed.id, claimed.lease, "w1")
            claims.finish_failed(c, row, "deadline", "late", moment)
    succeed(database, must_take(database, ids[1]))
    with database.write() as c:
        batch_changes.cancel_job(c, ids[5], now=moment)

    def lines(**options):
        with database.read() as c:
            return [row.line for row in results.iter_results(c, batch_id, chunk=chunk, **options)]

    assert lines() == [2]
    assert lines(include_failed=True) == [1, 2, 3, 5, 6]
    assert lines(include_failed=True, order="completion") == [1, 3, 5, 6, 2]
    assert lines(order="completion") == [2]
    assert lines(only_failed=True) == [1, 3, 5, 6]
    assert lines(only_failed=True, order="completion") == [1, 3, 5, 6]

    def summaries(state):
        with database.read() as c:
            return [(job.job_id, job.line, job.custom_id) for job in results.iter_jobs(c, batch_id, state, chunk=chunk)]

    assert summaries(JobState.FAILED) == [(ids[n], n + 1, f"c{n + 1}") for n in (0, 2, 4)]
    assert summaries(JobState.QUEUED) == [(ids[3], 4, "c4")]
    assert summaries(JobState.RUNNING) == []


def test_counters_of_a_rolled_back_transaction_are_forgotten(database):
    register(database, "w1")
    batch_id, ids = stored_batch(database, 2)
    claimed = must_take(database, ids[0])

    def finish_and_die():
        with database.write() as c:
            claims.finish_failed(c, FinishedJob(claimed.id, claimed.lease, "w1"), "deadline", "late", now())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        finish_and_die()
    assert counts(database, batch_id) == {"queued": 1, "running": 1}
    with database.write() as c:
        batch_changes.cancel_job(c, ids[1], now=now())
        # Read within the transaction that changed it.
        assert batch_status(c, batch_id).counts["cancelled"] == 1
    assert counts(database, batch_id) == {"cancelled": 1, "running": 1}
