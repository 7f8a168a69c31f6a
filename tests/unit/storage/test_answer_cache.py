"""Queued jobs take stored answers of equal ones, and equal jobs do not run side by side."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, func, select, update

from helix_jobs.client.purge import plan_purge, purge
from helix_jobs.new_job import NewJob
from helix_jobs.storage import answer_cache, batch_changes, batches, claims, pausing, publishing, purging
from helix_jobs.storage.answer_cache import AnswerSetup, stored_keys, take_answers
from helix_jobs.storage.kept_answers import kept_bytes
from helix_jobs.storage.manifests import read_manifest
from helix_jobs.storage.records import ClaimedJob, FinishedJob, NewBatch
from helix_jobs.storage.refusals import StoredAnswer, refuse_stored
from helix_jobs.storage.results import answers_of
from helix_jobs.storage.schema import jobs, kept_answers, kept_results, results
from helix_jobs.storage.status_counters import counters_agree, recount
from helix_jobs.storage.workers import stop_worker
from tests.store_helpers import DIGEST, check_counters, counts, fail, now, register, result_row, status

if TYPE_CHECKING:
    from helix_jobs.storage.database import Database

OWN = AnswerSetup("a" * 32, "a" * 32, "a" * 32)
OTHER = AnswerSetup("b" * 32, "b" * 32, "b" * 32)
LOOSE = AnswerSetup("a" * 16 + "0" * 16, "a" * 16 + "0" * 16, "a" * 16 + "f" * 16)


def batch_of(database: Database, *keys: str | None, seal: bool = True, **changes: Any) -> tuple[str, list[int]]:
    """A batch with a job for each key; returns its id and theirs."""
    batch_id = batches.new_batch_id(now())
    lines = [
        NewJob(line=n, custom_id=None, request={"prompt": str(key), "seed": n}, answer_key=key, **changes)
        for n, key in enumerate(keys, 1)
    ]
    with database.write() as c:
        batches.create_batch(c, NewBatch(id=batch_id, created_at=now()))
        batches.insert_jobs(c, batch_id, lines, now())
        if seal:
            batches.seal_batch(c, batch_id, len(keys), DIGEST)
    with database.read() as c:
        query = select(jobs.c.id).where(jobs.c.batch_id == batch_id).order_by(jobs.c.line)
        return batch_id, list(c.execute(query).scalars())


def claim(database: Database, job_id: int, setup: AnswerSetup | None = None, worker: str = "w1") -> ClaimedJob | None:
    with database.write() as c:
        return claims.claim(c, job_id, worker_id=worker, now=now(), setup=setup)


def must_claim(database: Database, job_id: int, setup: AnswerSetup | None = None) -> ClaimedJob:
    claimed = claim(database, job_id, setup)
    assert claimed is not None
    return claimed


def finish(database: Database, claimed: ClaimedJob, setup: AnswerSetup | None = OWN, choices: int = 1) -> None:
    rows = [result_row(choice=n, output_text=f"{claimed.request['prompt']} {n}") for n in range(choices)]
    job = FinishedJob(claimed.id, claimed.lease, "w1", None if setup is None else setup.key)
    with database.write() as c:
        assert claims.finish_succeeded(c, job, rows, now())


def answer(database: Database, *job_ids: int, setup: AnswerSetup | None = OWN, choices: int = 1) -> None:
    for job_id in job_ids:
        finish(database, must_claim(database, job_id), setup, choices)


def take(database: Database, *job_ids: int, setup: AnswerSetup = OWN) -> set[int]:
    return database.transact(lambda c: take_answers(c, job_ids, setup, now()))


def publishable(database: Database) -> list[int]:
    with database.read() as c:
        return [job.id for job in publishing.publishable(c, 100, without_twins=True)]


def mark(database: Database, *job_ids: int) -> None:
    with database.write() as c:
        publishing.mark_published(c, job_ids, now())


@pytest.fixture(autouse=True)
def _worker(request: pytest.FixtureRequest) -> None:
    register(request.getfixturevalue("database"), "w1")


def test_a_job_takes_the_answer_of_an_equal_one_and_says_from_which(database: Database) -> None:
    _, first = batch_of(database, "k1", "k2")
    answer(database, *first, choices=2)
    again, ids = batch_of(database, "k2", "k3", "k1", None)
    assert take(database, *ids) == {ids[0], ids[2]}
    assert counts(database, again) == {"succeeded": 2, "queued": 2}
    with database.read() as c:
        rows = answers_of(c, ids[0])
    assert [(row.choice, row.output_text, row.from_cache) for row in rows] == [
        (0, "k2 0", first[1]),
        (1, "k2 1", first[1]),
    ]
    assert (rows[0].worker_id, rows[0].run_id, rows[0].total_seconds) == ("w1", None, 0.0)
    assert take(database, *ids) == set(), "what has ended takes nothing"


def test_an_answer_from_the_cache_adds_no_tokens_and_its_maker_stands_in_the_manifest(database: Database) -> None:
    first, (source,) = batch_of(database, "k1")
    answer(database, source)
    again, ids = batch_of(database, "k1")
    take(database, *ids)
    seen = status(database, again)
    assert (seen.from_cache, seen.completion_tokens, seen.prompt_tokens) == (1, 0, 0)
    assert status(database, first).completion_tokens == 7
    with database.write() as c:
        assert counters_agree(c, again)
        recount(c, again)
        assert counters_agree(c, again)
        manifest = read_manifest(c, again)
    (maker,) = manifest.makers
    assert manifest.from_cache == 1
    assert (maker.worker_id, maker.jobs) == ("w1", 1)
    assert status(database, again).from_cache == 1


def test_what_came_from_the_cache_is_given_on_under_the_first_job_even_when_that_is_purged(database: Database) -> None:
    _, (source,) = batch_of(database, "k1")
    answer(database, source)
    _, (second,) = batch_of(database, "k1")
    take(database, second)
    with database.write() as c:
        (ended, *_) = purging.ended_batches(c)
        assert purging.begin_purge(c, ended, now())
        purging.purge_lines(c, ended.id, 0, 10)
        purging.end_purge(c, ended.id)
    _, (third,) = batch_of(database, "k1")
    assert take(database, third) == {third}
    with database.read() as c:
        assert answers_of(c, third)[0].from_cache == source


def test_keys_with_an_answer_to_take_are_found_also_after_a_purge(database: Database) -> None:
    def found(*keys: str, setup: AnswerSetup = OWN) -> set[str]:
        with database.read() as c:
            return stored_keys(c, keys, setup)

    batch, (first, second) = batch_of(database, "k1", "k2")
    answer(database, first)
    assert found("k1", "k2", "k3") == {"k1"}
    assert found("k1", setup=OTHER) == set()
    answer(database, second)
    assert found("k1", "k2", "k3") == found("k2", "k1") == {"k1", "k2"}
    purge(database, plan_purge(database, batch_ids=[batch]), keep_bytes=1 << 20)
    assert found("k1", "k2", "k3") == {"k1", "k2"}
    assert found("k1", setup=LOOSE) == {"k1"}
    assert found() == set()


def test_a_batch_whose_purge_has_begun_gives_nothing(database: Database) -> None:
    _, (source,) = batch_of(database, "k1")
    answer(database, source)
    with database.write() as c:
        (ended, *_) = purging.ended_batches(c)
        assert purging.begin_purge(c, ended, now())
    _, ids = batch_of(database, "k1")
    assert take(database, *ids) == set()
    assert claim(database, ids[0], OWN) is not None


def test_another_setup_takes_nothing_unless_its_range_says_so(database: Database) -> None:
    _, (source,) = batch_of(database, "k1")
    answer(database, source)
    _, ids = batch_of(database, "k1", "k1")
    assert take(database, *ids, setup=OTHER) == set()
    assert take(database, ids[0], setup=LOOSE) == {ids[0]}
    with database.read() as c:
        query = select(jobs.c.setup_key).where(jobs.c.id == ids[0])
        assert c.execute(query).scalar_one() == OWN.key, "it is as it was computed, whoever took it"


def test_an_answer_without_a_known_setup_is_nobody_elses(database: Database) -> None:
    _, (source,) = batch_of(database, "k1")
    answer(database, source, setup=None)
    _, ids = batch_of(database, "k1")
    assert take(database, *ids) == set()


@pytest.mark.parametrize("change", ["unsealed", "paused", "cancelled", "running", "tried"])
def test_only_a_job_that_could_be_claimed_for_its_first_try_takes_an_answer(database: Database, change: str) -> None:
    _, (source,) = batch_of(database, "k1")
    answer(database, source)
    batch_id, ids = batch_of(database, "k1", seal=change != "unsealed")
    with database.write() as c:
        if change == "paused":
            pausing.pause_batch(c, batch_id, now=now())
        elif change == "cancelled":
            batch_changes.begin_cancel(c, batch_id, now=now())
        elif change == "tried":
            c.execute(update(jobs).where(jobs.c.id == ids[0]).values(tries=1))
    if change == "running":
        must_claim(database, ids[0])
    assert take(database, *ids) == set()
    with database.write() as c:
        c.execute(update(jobs).values(tries=0))
        check_counters(c, batch_id)


def test_a_refused_answer_and_the_next_one_are_nobody_elses(database: Database) -> None:
    batch_id, (source,) = batch_of(database, "k1")
    answer(database, source)
    again, ids = batch_of(database, "k1")
    take(database, *ids)
    for batch, job_id in ((batch_id, source), (again, ids[0])):
        with database.write() as c:
            seen = c.execute(select(jobs.c.finished_at).where(jobs.c.id == job_id)).scalar_one()
            assert refuse_stored(c, batch, [StoredAnswer(job_id, seen)], max_tries=9, reason="no", now=now()) == 1
        assert status(database, batch).from_cache == 0
        assert status(database, batch).completion_tokens == 0
    _, third = batch_of(database, "k1")
    assert take(database, *third) == set()
    answer(database, source, setup=None)  # a later try; the worker names no setup for it
    assert take(database, *third) == set()


def test_a_claim_finds_the_answer_first_and_the_loser_changes_nothing(database: Database) -> None:
    _, (source,) = batch_of(database, "k1")
    answer(database, source)
    _, ids = batch_of(database, "k1", "k1")
    assert claim(database, ids[0], OWN) is None
    assert claim(database, ids[0], OTHER) is not None, "another setup computes its own"
    assert take(database, *ids) == {ids[1]}
    assert claim(database, ids[1]) is None


def test_a_late_write_behind_a_taken_answer_is_fenced(database: Database) -> None:
    _, (source,) = batch_of(database, "k1")
    batch_id, ids = batch_of(database, "k1")
    lost = must_claim(database, ids[0])
    answer(database, source)
    with database.write() as c:
        assert claims.release(c, lost.id, lost.lease, "w1", now())
    assert take(database, *ids) == {ids[0]}
    with database.write() as c:
        late = FinishedJob(lost.id, lost.lease, "w1", OWN.key)
        assert not claims.finish_succeeded(c, late, [result_row(output_text="late")], now())
    with database.read() as c:
        assert [row.output_text for row in answers_of(c, ids[0])] == ["k1 0"]
    assert counts(database, batch_id) == {"succeeded": 1}


def test_of_equal_jobs_one_is_published_and_the_others_take_its_answer(database: Database) -> None:
    batch_id, ids = batch_of(database, "k1", "k1", "k2", "k1", None, None)
    assert publishable(database) == [ids[0], ids[2], ids[4], ids[5]]
    mark(database, ids[0], ids[2])
    assert publishable(database) == ids[4:]
    claimed = must_claim(database, ids[0], OWN)
    assert publishable(database) == ids[4:]
    assert claim(database, ids[1], OWN) is None, "nor does a message that came all the same start it"
    finish(database, claimed)
    assert publishable(database) == [ids[1], *ids[4:]]
    assert take(database, *ids) == {ids[1], ids[3]}
    assert status(database, batch_id).from_cache == 2


def test_twins_go_on_alone_when_the_first_fails_is_cancelled_or_loses_its_message(database: Database) -> None:
    _, ids = batch_of(database, "k1", "k1", "k1", "k1")
    fail(database, must_claim(database, ids[0]))
    assert publishable(database) == [ids[1]]
    must_claim(database, ids[1], OWN)
    with database.write() as c:
        batch_changes.cancel_job(c, ids[1], now=now())
    mark(database, ids[2])
    assert publishable(database) == []
    with database.write() as c:
        publishing.republish_all(c)
    assert publishable(database) == [ids[2]]


def test_a_message_of_a_twin_is_left_to_the_one_that_runs(database: Database) -> None:
    _, ids = batch_of(database, "k1", "k1")
    mark(database, *ids)
    first = must_claim(database, ids[0], OWN)
    with database.write() as c:
        assert answer_cache.leave_to_twin(c, ids[1])
        assert not publishing.published_queued(c)
        assert not publishing.any_waits(c), "nobody looks for a delivery that need not come"
    fail(database, first)
    with database.write() as c:
        assert not answer_cache.leave_to_twin(c, ids[1])
    assert claim(database, ids[1], OWN) is not None


def test_two_that_wait_in_the_broker_do_not_wait_for_each_other(database: Database) -> None:
    _, ids = batch_of(database, "k1", "k1")
    mark(database, *ids)
    assert claim(database, ids[1], OWN) is not None


def test_an_urgent_job_does_not_wait_behind_its_twin(database: Database) -> None:
    _, slow = batch_of(database, "k1")
    mark(database, *slow)
    _, urgent = batch_of(database, "k1", priority=9)
    assert publishable(database) == urgent


def test_a_job_that_is_tried_again_waits_for_no_twin(database: Database) -> None:
    _, ids = batch_of(database, "k1", "k1")
    with database.write() as c:
        c.execute(update(jobs).where(jobs.c.id == ids[1]).values(tries=1))
    assert publishable(database) == ids
    must_claim(database, ids[0], OWN)
    assert claim(database, ids[1], OWN) is not None
    with database.write() as c:
        c.execute(update(jobs).values(tries=0))


def purge_all(database: Database, keep_bytes: int | None) -> None:
    with database.read() as c:
        ids = [batch.id for batch in purging.ended_batches(c)]
    purge(database, plan_purge(database, batch_ids=ids), keep_bytes=keep_bytes)


def test_an_answer_outlives_its_batch_where_a_purge_may_keep_it(database: Database) -> None:
    _, (source, twin, other) = batch_of(database, "k1", "k1", None)
    answer(database, source, twin, choices=2)
    answer(database, other)
    purge_all(database, keep_bytes=10_000)
    with database.read() as c:
        assert c.execute(select(func.count()).select_from(kept_answers)).scalar_one() == 1
    again, ids = batch_of(database, "k1", "k2")
    assert claim(database, ids[0], OWN) is None, "a claim finds it, too"
    assert take(database, *ids, setup=OTHER) == set()
    assert take(database, *ids) == {ids[0]}
    with database.read() as c:
        rows = answers_of(c, ids[0])
    assert [(row.choice, row.output_text, row.from_cache) for row in rows] == [(0, "k1 0", source), (1, "k1 1", source)]
    assert status(database, again).from_cache == 1


def test_a_job_whose_answer_somebody_has_deleted_keeps_no_purge_from_its_end(database: Database) -> None:
    _, (bare, whole) = batch_of(database, "k1", "k2")
    answer(database, bare, whole)
    with database.write() as c:
        c.execute(delete(results).where(results.c.job_id == bare))
    purge_all(database, keep_bytes=10_000)
    with database.read() as c:
        assert c.execute(select(kept_answers.c.answer_key)).scalars().all() == ["k2"]
        assert c.execute(select(func.count()).select_from(jobs)).scalar_one() == 0


@pytest.mark.parametrize("database", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
def test_two_take_one_kept_answer_at_a_moment(database: Database) -> None:
    _, ids = batch_of(database, "k1", "k2")
    answer(database, *ids)
    purge_all(database, keep_bytes=10_000)
    _, (first, second) = batch_of(database, "k1", "k1")
    with database.write() as c:
        assert take_answers(c, [first], OWN, now()) == {first}
        with database.write() as other:
            other.exec_driver_sql("SET LOCAL lock_timeout = '2s'")  # instead of waiting for the first
            assert take_answers(other, [second], OWN, now()) == {second}


def test_kept_answers_fit_their_size_and_those_used_last_stay(database: Database) -> None:
    _, ids = batch_of(database, "k1", "k2", "k3")
    answer(database, *ids)
    purge_all(database, keep_bytes=10_000)
    with database.read() as c:
        each = kept_bytes(c) // 3
    _, again = batch_of(database, "k1")
    take(database, *again)
    purge_all(database, keep_bytes=2 * each)
    with database.read() as c:
        assert kept_bytes(c) <= 2 * each
        left = set(c.execute(select(kept_answers.c.answer_key)).scalars())
    assert len(left) == 2
    assert "k1" in left
    purge_all(database, keep_bytes=None)
    with database.read() as c:
        assert kept_bytes(c) <= 2 * each, "whoever says nothing of them leaves them alone"
        assert kept_bytes(c) > 0
    purge_all(database, keep_bytes=0)
    with database.read() as c:
        assert kept_bytes(c) == 0
        assert c.execute(select(func.count()).select_from(kept_results)).scalar_one() == 0


def test_a_worker_whose_answers_are_kept_is_not_forgotten(database: Database) -> None:
    _, ids = batch_of(database, "k1")
    answer(database, *ids)
    with database.write() as c:
        stop_worker(c, "w1", now() - timedelta(days=9))
    purge_all(database, keep_bytes=10_000)
    assert database.transact(lambda c: purging.purge_workers(c, now(), 10)) == 0
    purge_all(database, keep_bytes=0)
    assert database.transact(lambda c: purging.purge_workers(c, now(), 10)) == 1
