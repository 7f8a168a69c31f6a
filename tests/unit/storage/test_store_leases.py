from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from helix_jobs.new_job import NewJob
from helix_jobs.storage import claims, publishing, results, retries, workers
from helix_jobs.storage.records import NewBatch, Reclaimed, RunTotals
from helix_jobs.storage.schema import runs
from helix_jobs.storage.single_request import store_request
from tests.store_helpers import (
    counts,
    ended,
    fail,
    get_job,
    must_take,
    now,
    register,
    result_row,
    status,
    stored_batch,
    succeed,
    take,
    worker,
)


@pytest.fixture
def _workers(database):
    register(database, "w1", "w2")


pytestmark = pytest.mark.usefixtures("_workers")


def test_a_job_is_claimed_once(database):
    batch_id, ids = stored_batch(database, 2)
    claimed = must_take(database, ids[0])
    assert (claimed.batch_id, claimed.line, claimed.lease, claimed.attempts) == (batch_id, 1, 1, 1)
    assert claimed.request["prompt"] == "Wörter 1"
    assert claimed.queued_at <= claimed.claimed_at
    assert take(database, ids[0], "w2") is None
    assert take(database, ids[0]) is None
    assert take(database, 999_999) is None
    assert counts(database, batch_id) == {"queued": 1, "running": 1}
    with database.read() as c:
        assert claims.held_leases(c, "w1") == {ids[0]: 1}
        assert claims.held_leases(c, "w2") == {}


def test_a_claim_tells_whether_a_person_waits_for_the_answer(database):
    _, (bulk,) = stored_batch(database, 1)
    assert not must_take(database, bulk).interactive
    job = NewJob(line=1, custom_id=None, request={"prompt": "a", "sampling": {}}, priority=9, size=1)
    batch = NewBatch(id="asked", created_at=now(), interactive=True)
    asked = database.transact(lambda c: store_request(c, batch, job))
    claimed = must_take(database, asked)
    assert (claimed.interactive, claimed.priority) == (True, 9)


def test_a_claim_repeated_after_an_uncertain_commit_is_the_same_claim(database):
    _, ids = stored_batch(database, 1)
    moment = now()
    with database.write() as c:
        first = claims.claim(c, ids[0], worker_id="w1", now=moment)
    with database.write() as c:
        assert claims.claim(c, ids[0], worker_id="w1", now=moment) == first
        assert claims.claim(c, ids[0], worker_id="w2", now=moment) is None
    assert first is not None
    assert first.attempts == 1


def test_success_writes_one_result_row_and_the_final_state(database):
    batch_id, ids = stored_batch(database, 1)
    claimed = must_take(database, ids[0])
    assert succeed(database, claimed)
    with database.read() as c:
        (result,) = results.iter_results(c, batch_id)
    assert (result.output_text, result.finish_reason, result.worker_id) == ("an answer", "stop", "w1")
    assert (result.prompt_tokens, result.completion_tokens, result.acceptance_rate) == (5, 7, 0.75)
    seen = status(database, batch_id)
    assert seen.done
    assert (seen.prompt_tokens, seen.completion_tokens, seen.draft_tokens, seen.accepted_tokens) == (5, 7, 8, 6)
    assert seen.started_at == claimed.claimed_at
    assert seen.finished_at == result.finished_at
    assert seen.tokens_per_second == pytest.approx(7 / seen.elapsed_seconds)


def test_failure_writes_code_and_message(database):
    batch_id, ids = stored_batch(database, 1)
    claimed = must_take(database, ids[0])
    assert fail(database, claimed, code="prompt_too_long")
    with database.read() as c:
        job = get_job(c, ids[0])
        assert list(results.iter_results(c, batch_id)) == []
    assert (job.state, job.error_code, job.error_message) == ("failed", "prompt_too_long", "it broke")
    assert status(database, batch_id).error_counts == {"prompt_too_long": 1}


def test_a_finish_repeated_after_an_uncertain_commit_is_not_fenced_and_not_doubled(database):
    batch_id, ids = stored_batch(database, 2)
    good, bad = must_take(database, ids[0]), must_take(database, ids[1])
    moment = now()
    for _ in range(2):
        with database.write() as c:
            assert claims.finish_succeeded(c, ended(good), [result_row()], moment)
            assert claims.finish_failed(c, ended(bad), "engine_error", "it broke", moment)
    assert not fail(database, good)
    assert counts(database, batch_id) == {"succeeded": 1, "failed": 1}


def test_a_failure_reported_after_the_attempt_cap_was_reached_is_fenced(database):
    _, ids = stored_batch(database, 1, max_attempts=1)
    claimed = must_take(database, ids[0])
    with database.write() as c:
        assert retries.reclaim(c, "w1", now()) == Reclaimed(failed=1)
    assert not fail(database, claimed)
    with database.read() as c:
        assert get_job(c, ids[0]).error_code == "worker_lost"


@pytest.mark.parametrize("late", ["succeed", "fail", "release", "give back"])
def test_a_late_write_after_a_reclaim_is_fenced(database, late):
    batch_id, ids = stored_batch(database, 1)
    old = must_take(database, ids[0], "w1")
    with database.write() as c:
        assert retries.reclaim(c, "w1", now()) == Reclaimed(requeued=1)
    new = must_take(database, ids[0], "w2")
    assert (new.lease, new.attempts) == (2, 2)
    with database.write() as c:
        if late == "succeed":
            written = claims.finish_succeeded(c, ended(old), [result_row(output_text="stale")], now())
        elif late == "fail":
            written = claims.finish_failed(c, ended(old), "engine_error", "stale", now())
        elif late == "give back":
            written = claims.give_back(c, old.id, old.lease, "w1", now())
        else:
            written = claims.release(c, old.id, old.lease, "w1", now())
    assert not written
    assert succeed(database, new, "w2")
    with database.read() as c:
        assert [row.output_text for row in results.iter_results(c, batch_id)] == ["an answer"]
    assert counts(database, batch_id) == {"succeeded": 1}


def test_a_late_write_is_fenced_even_if_the_same_worker_claimed_again(database):
    _, ids = stored_batch(database, 1)
    old = must_take(database, ids[0])
    with database.write() as c:
        retries.reclaim(c, "w1", now())
    new = must_take(database, ids[0])
    assert not succeed(database, old)
    assert succeed(database, new)


def test_the_attempt_is_counted_at_the_claim_and_capped(database):
    batch_id, ids = stored_batch(database, 1)
    for attempt in range(1, 4):
        assert must_take(database, ids[0]).attempts == attempt
        with database.write() as c:
            reclaimed = retries.reclaim(c, "w1", now())
    assert reclaimed == Reclaimed(failed=1)
    assert status(database, batch_id).error_counts == {"worker_lost": 1}
    assert take(database, ids[0]) is None


def test_a_job_that_is_given_back_is_queued_unpublished_and_its_attempt_counted(database):
    batch_id, ids = stored_batch(database, 1)
    for attempt in (1, 2, 3):
        claimed = must_take(database, ids[0])
        assert (claimed.attempts, claimed.max_attempts) == (attempt, 3)
        with database.write() as c:
            publishing.mark_published(c, ids, now())
            if attempt == 3:
                assert not claims.give_back(c, claimed.id, claimed.lease, "w1", now()), "it has no further attempt"
                break
            assert claims.give_back(c, claimed.id, claimed.lease, "w1", now())
            assert [job.id for job in publishing.publishable(c, 5)] == ids
            assert retries.awaits_last_attempt(c, ids[0]) is (attempt == 2)
    assert counts(database, batch_id) == {"running": 1}


def test_a_released_job_is_queued_unpublished_and_its_attempt_uncounted(database):
    batch_id, ids = stored_batch(database, 1)
    claimed = must_take(database, ids[0])
    with database.write() as c:
        publishing.mark_published(c, ids, now())
        assert claims.release(c, claimed.id, claimed.lease, "w1", now())
        assert [job.id for job in publishing.publishable(c, 5)] == ids
    assert counts(database, batch_id) == {"queued": 1}
    again = must_take(database, ids[0])
    assert (again.attempts, again.lease) == (1, 2)


def test_reclaim_spares_a_worker_that_has_beaten_since(database):
    batch_id, ids = stored_batch(database, 2)
    must_take(database, ids[0])
    must_take(database, ids[1], "w2")
    with database.read() as c:
        seen = workers.worker_heartbeats(c)["w1"]
    with database.write() as c:
        assert workers.heartbeat(c, "w1", now() + timedelta(seconds=5))
    with database.write() as c:
        assert retries.reclaim(c, "w1", now(), heartbeat=seen) is None
    assert counts(database, batch_id) == {"running": 2}
    with database.read() as c:
        seen = workers.worker_heartbeats(c)["w1"]
    with database.write() as c:
        assert retries.reclaim(c, "w1", now(), heartbeat=seen) == Reclaimed(requeued=1)
        assert claims.held_leases(c, "w2") == {ids[1]: 1}
        assert not workers.heartbeat(c, "w1", now())
        assert [row.id for row in workers.live_workers(c)] == ["w2"]


def test_a_lost_worker_that_comes_back_registers_again(database):
    _, ids = stored_batch(database, 1)
    with database.write() as c:
        retries.reclaim(c, "w1", now())
        assert "w1" not in workers.worker_heartbeats(c)
    # It claimed before it noticed: it is judged again, although stopped.
    must_take(database, ids[0])
    with database.write() as c:
        assert set(workers.worker_heartbeats(c)) == {"w1", "w2"}
        workers.register_worker(c, worker("w1"), now())
        assert workers.heartbeat(c, "w1", now())
        assert {row.id for row in workers.live_workers(c)} == {"w1", "w2"}


def test_leases_of_a_worker_without_a_row_are_seen_and_reclaimed(database):
    _, ids = stored_batch(database, 1)
    must_take(database, ids[0], "ghost")
    with database.write() as c:
        assert workers.worker_heartbeats(c)["ghost"] is None
        assert retries.reclaim(c, "ghost", now()) == Reclaimed(requeued=1)


def test_text_that_postgres_cannot_hold_is_stored_all_the_same(database):
    batch_id, ids = stored_batch(database, 2)
    good, bad = must_take(database, ids[0]), must_take(database, ids[1])
    assert succeed(database, good, output_text="nul \x00 and \ud800 end")
    with database.write() as c:
        assert claims.finish_failed(c, ended(bad), "engine_error", "\x00" + "m" * 5000, now())
    with database.read() as c:
        rows = list(results.iter_results(c, batch_id, include_failed=True))
    assert rows[0].output_text == "nul \ufffd and ? end"
    assert len(rows[1].error_message) == 2000


def test_a_result_for_an_unknown_run_changes_nothing(database):
    batch_id, ids = stored_batch(database, 1)
    claimed = must_take(database, ids[0])
    with pytest.raises(IntegrityError), database.write() as c:
        claims.finish_succeeded(c, ended(claimed), [result_row(run_id=12345)], now())
    assert counts(database, batch_id) == {"running": 1}


def test_runs_are_recorded(database):
    batch_id, ids = stored_batch(database, 1)
    claimed = must_take(database, ids[0])
    with database.write() as c:
        run_id = workers.start_run(c, "w1", now())
        unfinished = workers.start_run(c, "w1", now())
        totals = RunTotals(
            steps=3,
            jobs_finished=1,
            mean_depth=2.5,
            cached_prompt_tokens=16,
            preemptions=2,
            depth_reasons={"off:cost": 2, "lookup": 1},
            target_seconds=1.5,
        )
        workers.finish_run(c, run_id, totals, now())
        rows = {row.id: row for row in c.execute(select(runs))}
    assert all(getattr(rows[run_id], name) == value for name, value in asdict(totals).items())
    assert rows[unfinished].depth_reasons is rows[unfinished].target_seconds is None
    assert succeed(database, claimed, run_id=run_id)
    with database.read() as c:
        assert next(results.iter_results(c, batch_id)).run_id == run_id


def test_a_last_attempt_can_be_spared(database):
    _, ids = stored_batch(database, 2)
    for _ in range(2):
        must_take(database, ids[0])
        with database.write() as c:
            retries.reclaim(c, "w1", now())
    with database.write() as c:
        assert claims.claim(c, ids[0], worker_id="w1", now=now(), spare_last_attempt=True) is None
        assert retries.awaits_last_attempt(c, ids[0])
        claimed = claims.claim(c, ids[0], worker_id="w1", now=now())
        assert claimed is not None
        assert claimed.attempts == 3
        assert not retries.awaits_last_attempt(c, ids[0]), "it runs"
        assert not retries.awaits_last_attempt(c, ids[1])
        assert not retries.awaits_last_attempt(c, 999_999)
        assert claims.claim(c, ids[1], worker_id="w1", now=now(), spare_last_attempt=True) is not None


def test_an_only_attempt_is_no_last_one(database):
    _, ids = stored_batch(database, 1, max_attempts=1)
    with database.write() as c:
        assert claims.claim(c, ids[0], worker_id="w1", now=now(), spare_last_attempt=True) is not None
