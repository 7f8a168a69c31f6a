from __future__ import annotations

from datetime import timedelta

from helix_jobs.new_job import NewJob
from helix_jobs.storage import batch_changes, claims, publishing
from helix_jobs.storage.batches import insert_jobs, seal_batch
from tests.store_helpers import must_take, now, register, stored_batch


def _publishable(database, limit=100):
    with database.read() as c:
        return [(job.id, job.priority) for job in publishing.publishable(c, limit)]


def test_most_urgent_first_then_oldest_over_all_batches(database):
    _, first = stored_batch(database, 4, priorities=(0, 5))
    stored_batch(database, 3, seal=False, priorities=(9,))
    _, second = stored_batch(database, 4, priorities=(5, 9))
    expected = [
        (second[1], 9),
        (second[3], 9),
        (first[1], 5),
        (first[3], 5),
        (second[0], 5),
        (second[2], 5),
        (first[0], 0),
        (first[2], 0),
    ]
    assert _publishable(database) == expected
    assert _publishable(database, 5) == expected[:5]
    assert _publishable(database, 0) == []


def test_pages_of_interleaved_batches_lose_nothing(database):
    # More than a page of each of two batches whose ids alternate.
    ids = []
    batches = [stored_batch(database, 1, seal=False)[0] for _ in range(2)]
    for start in range(0, 400, 40):
        for batch_id in batches:
            lines = [NewJob(line=start + i + 2, custom_id=None, request={"prompt": "x"}) for i in range(40)]
            with database.write() as c:
                insert_jobs(c, batch_id, lines, now())
    with database.write() as c:
        for batch_id in batches:
            seal_batch(c, batch_id, 401, "d")
    ids = [job_id for job_id, _ in _publishable(database, 1000)]
    assert len(ids) == 802
    assert ids == sorted(ids)
    assert [job_id for job_id, _ in _publishable(database, 300)] == ids[:300]


def test_marked_jobs_are_not_published_again_until_they_seem_lost(database):
    _, ids = stored_batch(database, 4)
    moment = now()
    with database.write() as c:
        assert publishing.mark_published(c, ids[:2], moment) == 2
        assert publishing.mark_published(c, ids[2:3], moment + timedelta(seconds=5)) == 1
        assert publishing.mark_published(c, [], moment) == 0
    assert _publishable(database) == [(ids[3], 0)]
    with database.read() as c:
        assert len(publishing.published_queued(c)) == 3
        assert publishing.latest_published_at(c) == moment + timedelta(seconds=5)
        assert publishing.backlog(c) == 4
    with database.write() as c:
        assert publishing.republish_unseen(c, moment + timedelta(seconds=1)) == 2
    assert [job_id for job_id, _ in _publishable(database)] == [ids[0], ids[1], ids[3]]
    with database.write() as c:
        assert publishing.unmark_published(c, ids[2:3]) == 1
    assert len(_publishable(database)) == 4
    with database.write() as c:
        publishing.mark_published(c, ids[:3], moment + timedelta(days=1))
        assert publishing.republish_all(c) == 3
    assert len(_publishable(database)) == 4


def test_a_late_mark_does_not_touch_a_claimed_job(database):
    _, ids = stored_batch(database, 2)
    register(database, "w1")
    claimed = must_take(database, ids[0])
    with database.write() as c:
        assert publishing.mark_published(c, ids, now()) == 1
    with database.write() as c:
        assert claims.release(c, claimed.id, claimed.lease, "w1", now())
        assert len(publishing.published_queued(c)) == 1
    assert _publishable(database) == [(ids[0], 0)]


def test_backlog_counts_what_waits(database):
    _, ids = stored_batch(database, 5)
    register(database, "w1")
    must_take(database, ids[0])
    with database.write() as c:
        batch_changes.cancel_job(c, ids[4], now=now())
        assert publishing.backlog(c) == 3
