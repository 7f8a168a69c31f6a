"""The queue's figures for monitoring, against what the rows say."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import select, update

from helix_jobs.storage import batch_changes, changes_in_steps, publishing, queue_figures
from helix_jobs.storage.schema import jobs, workers
from helix_jobs.storage.states import OUTCOMES
from helix_jobs.storage.workers import stop_worker
from tests.store_helpers import fail, must_take, now, register, stored_batch, succeed


def figures(database):
    with database.read() as c:
        return queue_figures.queue_figures(c)


def set_queued_at(database, job_id, minutes):
    with database.write() as c:
        c.execute(update(jobs).where(jobs.c.id == job_id).values(queued_at=now() - timedelta(minutes=minutes)))


def age_minutes(moment):
    return round((now() - moment).total_seconds() / 60)


def test_an_empty_queue(database):
    found = figures(database)
    assert (found.queued, found.running, found.live_workers) == (0, 0, 0)
    assert found.ended == dict.fromkeys(OUTCOMES, 0)
    assert (found.oldest_queued_at, found.oldest_claimed_at, found.oldest_heartbeat_at) == (None, None, None)


def test_jobs_are_counted_by_what_became_of_them(database):
    register(database, "w1")
    batch, ids = stored_batch(database, 8)
    stored_batch(database, 5, seal=False)
    succeed(database, must_take(database, ids[0]))
    fail(database, must_take(database, ids[1]), code="deadline")
    fail(database, must_take(database, ids[2]), code="deadline")
    must_take(database, ids[3])
    with database.write() as c:
        batch_changes.cancel_job(c, ids[4], now=now())
    found = figures(database)
    assert (found.queued, found.running) == (3, 1)
    assert found.ended == dict.fromkeys(OUTCOMES, 0) | {"succeeded": 1, "deadline": 2, "cancelled": 1}
    changes_in_steps.retry_batch(database, batch)
    found = figures(database)
    assert (found.queued, found.ended["deadline"], found.ended["cancelled"]) == (6, 0, 0)


def test_the_oldest_waiting_job_is_found_published_or_not(database):
    _, young = stored_batch(database, 4)
    assert age_minutes(figures(database).oldest_queued_at) == 0
    _, old = stored_batch(database, 4, priorities=(5, 5, 0, 0))
    for job_id in old:
        set_queued_at(database, job_id, minutes=30)
    assert age_minutes(figures(database).oldest_queued_at) == 30
    with database.write() as c:
        publishing.mark_published(c, old, now())
    assert age_minutes(figures(database).oldest_queued_at) == 30
    for job_id in old:
        must_take(database, job_id)
    assert age_minutes(figures(database).oldest_queued_at) == 0
    with database.write() as c:
        for job_id in young:
            batch_changes.cancel_job(c, job_id, now=now())
    assert figures(database).oldest_queued_at is None


def test_low_priorities_wait_longest(database):
    _, ids = stored_batch(database, 4, priorities=(9, 9, 9, 1))
    set_queued_at(database, ids[3], minutes=90)
    assert age_minutes(figures(database).oldest_queued_at) == 90


def test_jobs_of_unsealed_and_cancelled_batches_do_not_wait(database):
    stored_batch(database, 2, seal=False)
    batch, _ = stored_batch(database, 2)
    changes_in_steps.cancel_batch(database, batch)
    assert figures(database).oldest_queued_at is None


def test_leases_and_heartbeats(database):
    register(database, "alive", "silent", "gone", "idle-gone")
    _, ids = stored_batch(database, 5)
    for job_id, holder in zip(ids, ("alive", "silent", "silent", "gone", "unknown"), strict=True):
        must_take(database, job_id, holder)
    with database.write() as c:
        for name, minutes in (("silent", 3), ("gone", 7), ("idle-gone", 60)):
            c.execute(
                update(workers).where(workers.c.id == name).values(heartbeat_at=now() - timedelta(minutes=minutes))
            )
        for name in ("gone", "idle-gone"):
            stop_worker(c, name, now())
        c.execute(update(jobs).where(jobs.c.id == ids[3]).values(claimed_at=now() - timedelta(minutes=11)))
    with database.read() as c:
        holders = {holder.worker_id: holder for holder in queue_figures.lease_holders(c)}
        claimed = c.execute(select(jobs.c.claimed_at).where(jobs.c.id == ids[3])).scalar_one()
    assert {name: (holder.leases, holder.is_live) for name, holder in holders.items()} == {
        "alive": (1, True),
        "silent": (2, True),
        "gone": (1, False),
        "unknown": (1, False),
    }
    assert (holders["unknown"].hostname, holders["unknown"].heartbeat_at) == (None, None)
    assert holders["gone"].claimed_at == claimed
    found = figures(database)
    assert (found.live_workers, found.running) == (2, 5)
    assert age_minutes(found.oldest_heartbeat_at) == 7
    assert age_minutes(found.oldest_claimed_at) == 11
