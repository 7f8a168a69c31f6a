"""A manifest names the workers from a few rows, after a recount too, and keeps them through a purge of old ones."""

from __future__ import annotations

from datetime import timedelta

from helix_jobs.storage import batch_changes, purging, workers
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.manifests import read_manifest
from tests.store_helpers import fail, must_take, now, register, stored_batch, succeed, worker


def _makers(database, batch_id):
    with database.read() as c:
        return [(maker.worker_id, maker.jobs) for maker in read_manifest(c, batch_id).makers]


def test_workers_are_named_with_the_jobs_they_ended(database):
    with database.write() as c:
        workers.register_worker(c, worker("w2", setup={"helix": "9"}), now())
    register(database, "w1")
    batch_id, ids = stored_batch(database, 4)
    assert _makers(database, batch_id) == []
    succeed(database, must_take(database, ids[0]))
    for job_id in ids[1:3]:
        succeed(database, must_take(database, job_id, "w2"), "w2")
    fail(database, must_take(database, ids[3], "w2"), "w2")
    assert _makers(database, batch_id) == [("w2", 3), ("w1", 1)]
    with database.read() as c:
        assert [maker.setup for maker in read_manifest(c, batch_id).makers] == [{"helix": "9"}, None]


def test_what_is_known_of_a_worker_later_replaces_what_was_known_before(database):
    register(database, "w1")
    batch_id, ids = stored_batch(database, 1)
    succeed(database, must_take(database, ids[0]))
    with database.write() as c:
        workers.describe_worker(c, "w1", {"target": {"name": "target", "digest": "ab"}})
    with database.read() as c:
        (maker,) = read_manifest(c, batch_id).makers
    assert maker.setup == {"target": {"name": "target", "digest": "ab"}}


def test_a_recount_keeps_what_each_worker_ended(database):
    register(database, "w1", "w2")
    batch_id, ids = stored_batch(database, 5)
    for job_id in ids[:2]:
        succeed(database, must_take(database, job_id))
    fail(database, must_take(database, ids[2], "w2"), "w2")
    must_take(database, ids[3], "w2")
    with database.write() as c:
        batch_changes.cancel_job(c, ids[3], now=now())
    before = _makers(database, batch_id)
    with database.write() as c:
        counters.recount(c, batch_id)
        assert counters.counters_agree(c, batch_id)
        for name in ("w1", "w2"):
            workers.stop_worker(c, name, now())
        assert purging.purge_workers(c, now() + timedelta(days=1), 10) == 0
    assert _makers(database, batch_id) == before == [("w1", 2), ("w2", 1)]


def test_a_purge_keeps_the_workers_of_batches_that_stay(database):
    register(database, "w1", "w2")
    batch_id, ids = stored_batch(database, 1)
    succeed(database, must_take(database, ids[0]))
    later = now() + timedelta(days=1)
    with database.write() as c:
        for name in ("w1", "w2"):
            workers.stop_worker(c, name, now())
        assert purging.purge_workers(c, later, 10) == 1
    with database.read() as c:
        (maker,) = read_manifest(c, batch_id).makers
    assert (maker.worker_id, maker.target_model) == ("w1", "target")
