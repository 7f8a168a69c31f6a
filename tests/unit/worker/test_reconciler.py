from __future__ import annotations

import os
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from helix_jobs.broker.stranded_messages import StrandedMessages
from helix_jobs.errors import BrokerUnreachableError, DatabaseUnreachableError
from helix_jobs.storage import claims, publishing, workers
from helix_jobs.storage.process_identity import Here
from helix_jobs.storage.schema import batches
from helix_jobs.time_limits import TimeLimits
from helix_jobs.worker.brakes import LOOK_SECONDS
from helix_jobs.worker.reconciler import (
    Reconciler,
)
from helix_jobs.worker.shared_broker import clear_stranded, revive_broker
from helix_jobs.worker.stranded_messages import send_again
from tests.store_helpers import counts, must_take, now, register, status, stored_batch, succeed, worker
from tests.worker_box import wait_until

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(seconds=5)


class Broker:
    """Keeps messages in a list; may be away."""

    def __init__(self):
        self.messages = []
        self.unacked = []
        self.away = False

    def depth(self):
        if self.away:
            raise BrokerUnreachableError("the broker is away")
        return len(self.messages)

    def turn(self):
        return nullcontext()

    def publish(self, jobs):
        if self.away:
            raise BrokerUnreachableError("the broker is away")
        self.messages.extend(job.id for job in jobs)

    def reset_queue(self):
        self.messages.clear()
        self.unacked.clear()

    def forget_delivered(self, are_moot):
        if self.unacked and are_moot():
            self.unacked.clear()
            return 1
        return 0


class Restarted:
    """An embedded broker that had gone."""

    def is_running(self):
        return False

    def start(self):
        return True


class Clock:
    """Monotonic seconds that move when told."""

    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def broker():
    return Broker()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def reconciler(database, broker, clock):
    """The reconciler of worker ``me``, which is registered."""
    register(database, "me")
    return Reconciler(database, broker, worker_id="me", clock=clock)


@pytest.fixture
def tick(reconciler, clock, database):
    """``tick(30)``: let time pass a second at a time; whoever beats does."""

    def pass_time(seconds, *, beating=("me",)):
        for _ in range(seconds):
            clock.seconds += 1.0
            with database.write() as c:
                for worker_id in beating:
                    workers.heartbeat(c, worker_id, now())
            reconciler.tick()

    return pass_time


def test_a_silent_worker_loses_its_jobs_and_they_are_published_again(database, broker, reconciler, tick):
    register(database, "silent", "alive")
    batch_id, ids = stored_batch(database, 3)
    reconciler.tick()
    assert broker.messages == ids
    broker.messages.clear()
    must_take(database, ids[0], "silent")
    must_take(database, ids[1], "alive")
    tick(29, beating=("me", "alive"))
    assert counts(database, batch_id) == {"running": 2, "queued": 1}
    tick(2, beating=("me", "alive"))
    assert counts(database, batch_id) == {"running": 1, "queued": 2}
    assert reconciler.counters.requeued == 1
    assert ids[0] in broker.messages
    with database.read() as c:
        assert {row.id for row in workers.live_workers(c)} == {"me", "alive"}


def test_messages_a_lost_worker_had_taken_are_sent_again_though_the_broker_is_never_empty(
    database, broker, reconciler, tick
):
    register(database, "silent")
    _, ids = stored_batch(database, 5)
    reconciler.tick()
    # Two were delivered to the worker that is lost: one is claimed, one waits in its hands. The others stay.
    del broker.messages[:2]
    must_take(database, ids[0], "silent")
    tick(32)
    assert ids[0] in broker.messages
    assert ids[1] in broker.messages
    assert reconciler.counters.requeued == 1


@pytest.mark.parametrize("way", ["a worker is lost", "a worker begins alone", "the embedded broker is started again"])
def test_marks_of_a_clock_that_is_ahead_are_taken_off_as_well(database, broker, reconciler, tick, way):
    register(database, "silent")
    _, ids = stored_batch(database, 5)
    with database.write() as c:
        publishing.mark_published(c, ids, now() + timedelta(minutes=5))
    if way == "a worker is lost":
        broker.messages.append(0)
        tick(32)
        assert reconciler.counters.republished == 5
    elif way == "a worker begins alone":
        with database.write() as c:
            workers.stop_worker(c, "silent", now())
        clear_stranded(database, broker, "me")
    else:
        assert revive_broker(database, Restarted())
    if way != "a worker is lost":
        broker.messages.append(0)
    reconciler.tick()
    assert broker.messages == [0, *ids]


def test_a_worker_is_not_given_up_without_its_messages_being_sent_again(
    database, broker, reconciler, tick, monkeypatch
):
    """Else nobody would think of them again: the worker counts as stopped."""
    register(database, "silent")
    _, ids = stored_batch(database, 3)
    reconciler.tick()
    del broker.messages[:2]
    must_take(database, ids[0], "silent")

    def fail(_):
        raise DatabaseUnreachableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "republish_all", fail)
        with pytest.raises(DatabaseUnreachableError):
            tick(32)
    with database.read() as c:
        assert [worker.id for worker in workers.live_workers(c)] == ["me", "silent"]
        assert claims.held_leases(c, "silent") == {ids[0]: 1}
    tick(32)
    assert set(ids[:2]) <= set(broker.messages)


def test_time_nobody_watched_is_no_silence(database, clock, reconciler):
    register(database, "other")
    _, ids = stored_batch(database, 1)
    must_take(database, ids[0], "other")
    reconciler.tick()
    clock.seconds += 3600
    reconciler.tick()
    with database.read() as c:
        assert claims.held_leases(c, "other") == {ids[0]: 1}


def test_the_broker_is_kept_at_its_window_most_urgent_first(database, broker):
    _, ids = stored_batch(database, 30, priorities=(0, 0, 7))
    reconciler = Reconciler(database, broker, window=10)
    reconciler.tick()
    assert broker.messages == ids[2::3]
    reconciler.tick()
    assert len(broker.messages) == 10
    del broker.messages[:4]
    reconciler.tick()
    low = [job_id for job_id in ids if job_id not in ids[2::3]]
    assert broker.messages == [*ids[2::3][4:], *low[:4]]
    assert reconciler.counters.published == 14


def test_jobs_whose_publication_failed_are_published_when_the_broker_is_back(database, broker, reconciler):
    _, ids = stored_batch(database, 3)
    broker.away = True
    with pytest.raises(BrokerUnreachableError):
        reconciler.tick()
    with database.read() as c:
        assert len(publishing.published_queued(c)) == 0
    broker.away = False
    reconciler.tick()
    assert broker.messages == ids


def test_lost_messages_are_sent_again_after_the_broker_was_empty_long_enough(database, broker, reconciler, tick):
    _, ids = stored_batch(database, 3)
    reconciler.tick()
    # The broker forgets everything.
    broker.messages.clear()
    tick(30)
    assert broker.messages == []
    tick(2)
    assert broker.messages == ids
    assert reconciler.counters.republished == 3


def test_messages_that_could_not_be_given_back_are_sent_again_though_the_broker_is_busy(database, broker):
    register(database, "me")
    _, ids = stored_batch(database, 3)
    stranded = StrandedMessages()
    reconciler = Reconciler(database, broker, worker_id="me", stranded=stranded)
    reconciler.tick()
    del broker.messages[:2]
    must_take(database, ids[0], "me")
    stranded.note(ids[:2])
    reconciler.tick()
    assert stranded.ids == frozenset()
    assert reconciler.counters.republished == 1, "the other one runs"
    broker.messages.clear()
    reconciler.tick()
    assert broker.messages == [ids[1]]


def test_what_is_stranded_is_forgotten_with_the_commit_alone(database):
    _, ids = stored_batch(database, 1)
    stranded = StrandedMessages()
    stranded.note(ids)
    with database.write() as c:
        publishing.mark_published(c, ids, now())

    def fail(_):
        raise RuntimeError("what is done beside it fails")

    with pytest.raises(RuntimeError):
        send_again(stranded, database, fail)
    assert stranded.ids == frozenset(ids)
    assert send_again(stranded, database) == 1


def test_messages_that_are_still_there_are_not_sent_again(database, broker, tick):
    _, ids = stored_batch(database, 2)
    tick(100)
    assert broker.messages == ids


def test_what_lost_workers_held_is_forgotten_when_every_job_has_ended(database, broker, reconciler):
    batch_id, ids = stored_batch(database, 2)
    reconciler.tick()
    broker.unacked, broker.messages = list(broker.messages), []
    reconciler.tick()
    assert broker.unacked == ids, "a worker may have them and not have claimed yet"
    taken = [must_take(database, job_id, "me") for job_id in ids]
    assert succeed(database, taken[0], "me")
    reconciler.tick()
    assert broker.unacked == ids
    assert succeed(database, taken[1], "me")
    reconciler.tick()
    assert broker.unacked == []
    assert counts(database, batch_id) == {"succeeded": 2}


def test_predecessors_are_reclaimed_at_once(database, reconciler):
    batch_id, ids = stored_batch(database, 2)
    with database.write() as c:
        # The same number as this process, which started at another time; and one that nobody here can see.
        me = {"hostname": "host", "pid": os.getpid(), "boot_id": "b", "pid_namespace": "n"}
        workers.register_worker(c, worker("dead", **me, process_started="then"), now())
        workers.register_worker(c, worker("far", **me | {"boot_id": "another"}, process_started="then"), now())
    must_take(database, ids[0], "dead")
    must_take(database, ids[1], "far")
    here = Here(boot_id="b", pid_namespace="n", started=lambda _: "now")
    assert reconciler.reclaim_predecessors(here) == 1
    assert reconciler.reclaim_predecessors(here) == 0
    assert counts(database, batch_id) == {"queued": 1, "running": 1}


def test_the_thread_outlives_errors(sqlite_database):
    _, ids = stored_batch(sqlite_database, 2)

    class Moody(Broker):
        def depth(self):
            calls.append(1)
            if len(calls) == 1:
                raise BrokerUnreachableError("away")
            if len(calls) == 2:
                raise ValueError("a bug in some client")
            return super().depth()

        def publish(self, jobs):
            super().publish(jobs)
            done.set()

    import threading

    calls, done = [], threading.Event()
    broker = Moody()
    reconciler = Reconciler(sqlite_database, broker, time_limits=TimeLimits(reconcile=0.01))
    reconciler.start()
    assert done.wait(10)
    assert reconciler.stop()
    assert broker.messages == ids
    assert reconciler.counters.errors == 2


def test_a_reconciler_for_which_there_is_no_thread_is_stopped(sqlite_database, monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    reconciler = Reconciler(sqlite_database, Broker())
    monkeypatch.setattr("threading.Thread.start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        reconciler.start()
    assert reconciler.stop()


@pytest.mark.thorough(fast=1)
def test_a_batch_whose_brake_says_stop_is_paused_and_the_log_says_why(database, reconciler, clock, caplog):
    register(database, "w1")
    batch_id, ids = stored_batch(database, 3)
    other, _ = stored_batch(database, 1)
    with database.write() as c:
        c.execute(update(batches).where(batches.c.id == batch_id).values(brakes={"max_tokens_total": 11}))
    reconciler.tick()
    succeed(database, must_take(database, ids[0]))
    reconciler.tick()
    assert status(database, batch_id).paused_at is None, "the next look is due in some seconds"
    clock.seconds += LOOK_SECONDS
    with caplog.at_level("WARNING"):
        reconciler.tick()
    assert f"batch {batch_id} is paused, 2 jobs wait: 11 tokens computed" in caplog.text
    assert status(database, batch_id).paused_at is not None
    assert status(database, other).paused_at is None


def test_a_silent_worker_is_judged_no_later_while_another_duty_keeps_failing(sqlite_database):
    batch_id, ids = stored_batch(sqlite_database, 1)
    register(sqlite_database, "silent")
    must_take(sqlite_database, ids[0], "silent")
    broker = Broker()
    broker.away = True
    limits = TimeLimits(
        reconcile=0.02, heartbeat=0.1, lease_check=0.02, own_silence=0.3, idle_transaction=0.3, lease=0.5
    )
    reconciler = Reconciler(sqlite_database, broker, time_limits=limits)
    reconciler.start()
    try:
        wait_until(lambda: counts(sqlite_database, batch_id) == {"queued": 1}, "nobody judges it", 15.0)
    finally:
        reconciler.stop()
    assert reconciler.counters.errors > 1
