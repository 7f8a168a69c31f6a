"""Real threads with real connections against the store: whatever the order, one result a job."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from sqlalchemy import func, select

from helix_jobs.errors import IdempotencyConflictError, NotFoundError
from helix_jobs.storage import batch_changes, batches, changes_in_steps, claims, publishing, retries
from helix_jobs.storage.group_commit import GroupCommitWriter
from helix_jobs.storage.records import NewBatch
from helix_jobs.storage.schema import jobs, results
from tests.store_helpers import (
    DIGEST,
    check_counters,
    counts,
    ended,
    get_job,
    must_take,
    new_jobs,
    now,
    register,
    result_row,
    status,
    stored_batch,
    succeed,
    take,
)


def _together(*functions):
    """Run the functions at once, each on a thread; returns their values."""
    gate = threading.Barrier(len(functions))

    def run(function):
        gate.wait(10)
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result(60) for future in [pool.submit(run, function) for function in functions]]


def test_of_many_claimers_one_gets_the_job(database):
    register(database, "w1", "w2")
    _, ids = stored_batch(database, 8)
    for job_id in ids:
        won = _together(
            *(lambda name=name, job_id=job_id: take(database, job_id, name) for name in ("w1", "w2", "w1", "w2"))
        )
        assert sum(claimed is not None for claimed in won) == 1
    with database.read() as c:
        assert set(c.execute(select(jobs.c.attempts)).scalars()) == {1}


def test_finish_and_reclaim_at_once(database):
    register(database, "w1", "w2")
    batch_id, ids = stored_batch(database, 10)
    for job_id in ids:
        claimed = must_take(database, job_id)

        def reclaim():
            return database.transact(lambda c: retries.reclaim(c, "w1", now()))

        written, reclaimed = _together(lambda claimed=claimed: succeed(database, claimed), reclaim)
        assert reclaimed.requeued == (0 if written else 1)
        if not written:
            assert succeed(database, must_take(database, job_id, "w2"), "w2")
    assert counts(database, batch_id) == {"succeeded": 10}


def test_finish_and_cancel_at_once(database):
    register(database, "w1")
    for _ in range(6):
        batch_id, ids = stored_batch(database, 3)
        held = [must_take(database, job_id) for job_id in ids[:2]]

        def finish(held=held):
            # In one transaction and in the order opposite to the cancel's, so that Postgres may see a deadlock.
            return database.transact(
                lambda c: [
                    claims.finish_succeeded(c, ended(claimed), [result_row()], now()) for claimed in reversed(held)
                ]
            )

        written, cancelled = _together(
            finish, lambda batch_id=batch_id: changes_in_steps.cancel_batch(database, batch_id)
        )
        assert cancelled == 3 - sum(written)
        assert status(database, batch_id).done


def test_release_and_cancel_at_once_leave_nothing_behind(database):
    register(database, "w1")
    for _ in range(6):
        batch_id, ids = stored_batch(database, 2)
        claimed = must_take(database, ids[0])

        def release(claimed=claimed):
            return database.transact(lambda c: claims.release(c, claimed.id, claimed.lease, "w1", now()))

        _together(release, lambda batch_id=batch_id: changes_in_steps.cancel_batch(database, batch_id))
        assert counts(database, batch_id) == {"cancelled": 2}


def test_claim_and_cancel_at_once(database):
    register(database, "w1")
    for _ in range(6):
        batch_id, ids = stored_batch(database, 3)

        def claim(ids=ids):
            return database.transact(
                lambda c: [claims.claim(c, job_id, worker_id="w1", now=now()) for job_id in reversed(ids)]
            )

        _together(claim, lambda batch_id=batch_id: changes_in_steps.cancel_batch(database, batch_id))
        assert counts(database, batch_id) == {"cancelled": 3}


def test_mark_and_claim_at_once_do_not_wait_for_each_other(database):
    register(database, "w1")
    _, ids = stored_batch(database, 200)
    with database.read() as c:
        waiting = [job.id for job in publishing.publishable(c, 200)]

    def claim():
        with database.write() as c:
            return [claims.claim(c, job_id, worker_id="w1", now=now()) for job_id in reversed(ids[::4])]

    def mark():
        with database.write() as c:
            return publishing.mark_published(c, waiting, now())

    claimed, marked = _together(claim, mark)
    assert None not in claimed
    with database.read() as c:
        left = publishing.publishable(c, 200)
        assert len(publishing.published_queued(c)) + len(left) == 150
    assert marked >= 150 - len(left)


def test_two_submitters_with_one_key_make_one_batch(database):
    def submit():
        with database.write() as c:
            batch = batches.create_batch(
                c, NewBatch(id=batches.new_batch_id(now()), created_at=now(), idempotency_key="night")
            )
        for start in range(0, 60, 20):
            with database.write() as c:
                batches.insert_jobs(c, batch.id, new_jobs(60)[start : start + 20], now())
        with database.write() as c:
            batches.seal_batch(c, batch.id, 60, DIGEST)
        return batch.id

    first, second = _together(submit, submit)
    assert first == second
    assert counts(database, first) == {"queued": 60}


def test_a_seal_and_a_cancel_at_once_leave_no_queued_job(database):
    """The seal comes first and its jobs are cancelled, or it finds the batch gone, and with it every job."""
    for _ in range(6):
        batch_id, ids = stored_batch(database, 3, seal=False)

        def seal(batch_id=batch_id):
            try:
                database.transact(lambda c: batches.seal_batch(c, batch_id, 3, DIGEST))
            except NotFoundError:
                return False
            return True

        sealed, cancelled = _together(seal, lambda batch_id=batch_id: changes_in_steps.cancel_batch(database, batch_id))
        assert cancelled == (3 if sealed else 0)
        if sealed:
            assert counts(database, batch_id) == {"cancelled": 3}
        else:
            with database.read() as c, pytest.raises(NotFoundError):
                get_job(c, ids[0])


def test_lines_added_while_their_batch_is_cancelled_go_with_it(database):
    for _ in range(6):
        batch_id, _ = stored_batch(database, 3, seal=False)

        def insert(batch_id=batch_id):
            try:
                database.transact(lambda c: batches.insert_jobs(c, batch_id, new_jobs(200)[3:], now()))
            except NotFoundError:
                return False
            return True

        _together(insert, lambda batch_id=batch_id: changes_in_steps.cancel_batch(database, batch_id))
        with database.read() as c:
            assert c.execute(select(func.count()).select_from(jobs)).scalar_one() == 0


def test_a_slower_submission_cannot_add_to_a_sealed_batch(database):
    batch_id, _ = stored_batch(database, 3, seal=False)

    def seal():
        try:
            database.transact(lambda c: batches.seal_batch(c, batch_id, 3, DIGEST))
        except IdempotencyConflictError:
            return False
        return True

    def insert():
        try:
            database.transact(lambda c: batches.insert_jobs(c, batch_id, new_jobs(4)[3:], now()))
        except IdempotencyConflictError:
            return False
        return True

    assert sorted(_together(seal, insert)) == [False, True]


def test_retry_and_a_running_worker_at_once(database):
    register(database, "w1")
    batch_id, ids = stored_batch(database, 20)
    held = [must_take(database, job_id) for job_id in ids]

    def work():
        done = []
        for claimed in held:
            with database.write() as c:
                done.append(claims.finish_failed(c, ended(claimed), "engine_error", "broke", now()))
        return done

    def retry():
        return [changes_in_steps.retry_batch(database, batch_id) for _ in range(10)]

    done, retried = _together(work, retry)
    assert all(done)
    seen = counts(database, batch_id)
    assert seen.get("queued", 0) == sum(retried)
    assert seen.get("queued", 0) + seen.get("failed", 0) == 20


class _CarelessWorker:
    """Claims at random, forgets some claims, releases some, finishes the rest."""

    def __init__(self, database, name, ids, seed, stop):
        self._writer = GroupCommitWriter(database, max_rows=10, max_delay=0.002)
        self._name, self._ids, self._stop = name, ids, stop
        self._rng = random.Random(f"{seed}{name}")

    def work(self):
        """Go on until told to stop; returns how many results were written."""
        wrote = 0
        while not self._stop.is_set():
            picked = dict.fromkeys(self._rng.choices(self._ids, k=5))
            claims = [self._writer.submit(self._claim(job_id)) for job_id in picked]
            ends = [self._end(claimed) for claimed in [future.result(60) for future in claims] if claimed is not None]
            wrote += sum(future.result(60) for future in ends if future is not None)
        assert self._writer.close()
        return wrote

    def _claim(self, job_id):
        moment = now()
        return lambda c: claims.claim(c, job_id, worker_id=self._name, now=moment)

    def _end(self, claimed):
        dice = self._rng.random()
        if dice < 0.2:
            return None  # forgotten: the reclaimer will find it
        if dice < 0.4:
            release = partial(claims.release, job_id=claimed.id, lease=claimed.lease, worker_id=self._name, now=now())
            self._writer.submit(release)
            return None
        job = ended(claimed, self._name)
        return self._writer.submit(lambda c: claims.finish_succeeded(c, job, [result_row()], now()))


def _meddle(database, batch_id, ids, names, seed):
    rng = random.Random(seed)
    changes = (
        lambda: changes_in_steps.cancel_batch(database, batch_id),
        lambda: database.transact(lambda c: batch_changes.cancel_job(c, rng.choice(ids), now=now())),
        lambda: database.transact(lambda c: retries.reclaim(c, rng.choice(names), now())),
        lambda: changes_in_steps.retry_batch(database, batch_id),
    )
    for _ in range(40):
        rng.choice(changes)()
        with database.read() as c:
            check_counters(c, batch_id)


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("seed", [1, 2])
def test_workers_that_die_and_people_who_change_their_minds_lose_nothing(database, seed):
    names = ("w1", "w2", "w3")
    register(database, *names)
    batch_id, ids = stored_batch(database, 60, max_attempts=1000)
    stop = threading.Event()

    def meddle():
        try:
            _meddle(database, batch_id, ids, names, seed)
        finally:
            stop.set()

    workers = [_CarelessWorker(database, name, ids, seed, stop) for name in names]
    *wrote, _ = _together(*(worker.work for worker in workers), meddle)
    with database.read() as c:
        assert sum(wrote) == c.execute(select(func.count()).select_from(results)).scalar_one()
    # Whatever state that left, a retry and a last worker complete the batch.
    changes_in_steps.cancel_batch(database, batch_id)
    changes_in_steps.retry_batch(database, batch_id)
    assert all(succeed(database, claimed) for job_id in ids if (claimed := take(database, job_id)) is not None)
    assert counts(database, batch_id) == {"succeeded": 60}
