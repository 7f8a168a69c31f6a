"""A lost message is found while the broker stays busy; one on its way is not taken for lost."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from helix_jobs.broker.publisher import CeleryPublisher, EmbeddedBroker, QueueNames
from helix_jobs.storage import publishing
from helix_jobs.storage.check import check_rows
from helix_jobs.storage.records import PublishableJob
from helix_jobs.storage.schema import jobs
from helix_jobs.time_limits import TimeLimits
from helix_jobs.worker.audit import Audit, missing, read_known_ids
from helix_jobs.worker.reconciler import Reconciler
from tests.store_helpers import now, stored_batch

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.storage.database import Database

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_only_what_is_missing_twice_at_the_same_publication_is_lost() -> None:
    first, lost = missing({1: NOON, 2: NOON, 3: NOON}, {3}, {})
    assert (set(first), lost) == ({1, 2}, [])
    later = NOON + timedelta(seconds=1)
    second, lost = missing({1: NOON, 2: later, 4: NOON}, set(), first)
    assert (set(second), lost) == ({1, 2, 4}, [1])


def test_a_look_that_says_nothing_forgets_the_one_before() -> None:
    audit = Audit(interval=0.0)
    assert audit.look({1: NOON}, set()) == []
    assert audit.look({1: NOON}, None) == []
    assert audit.look({1: NOON}, set()) == []
    assert audit.look({1: NOON}, set()) == [1]


@pytest.mark.redis
@pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows")
def test_ids_are_read_wherever_the_broker_has_them(tmp_path: Path) -> None:
    names, broker = QueueNames("audit"), EmbeddedBroker(tmp_path)
    broker.start()
    publisher = CeleryPublisher(broker.url, names)
    publisher.publish([PublishableJob(job_id, job_id % 10) for job_id in range(1, 2501)])

    def deliver_three_and_spoil_it(client) -> None:
        for number in range(3):
            message = client.rpop(names.queue).decode()
            client.hset(names.unacked, f"tag-{number}", f'[{message}, "", "{names.queue}"]')
        client.lpush(names.queue, "no JSON", '{"not": "ours"}')

    publisher.ask(deliver_three_and_spoil_it)
    try:
        assert read_known_ids(publisher) == set(range(1, 2501))
    finally:
        publisher.close()
        broker.stop()


class Busy:
    """A broker that is never empty, and loses what a test takes out of it."""

    def __init__(self) -> None:
        self.messages: list[int] = []
        self.least = 1

    def depth(self) -> int:
        return max(self.least, len(self.messages))

    def turn(self):
        return nullcontext()

    def publish(self, jobs) -> None:
        self.messages += [job.id for job in jobs]

    def forget_delivered(self, are_moot) -> int:  # noqa: ARG002
        return 0

    def reconciler(self, database: Database) -> Reconciler:
        time_limits = TimeLimits(audit=0.0, republish=0.0)
        return Reconciler(database, self, time_limits=time_limits, window=10, known_ids=lambda: set(self.messages))


def test_a_busy_brokers_lost_message_is_sent_again(database: Database) -> None:
    _, ids = stored_batch(database, 3)
    broker = Busy()
    reconciler = broker.reconciler(database)
    reconciler.tick()
    broker.messages.remove(ids[1])
    reconciler.tick()
    assert ids[1] not in broker.messages, "it may be on its way"
    for _ in range(2):
        reconciler.tick()
    assert sorted(broker.messages) == sorted(ids)
    assert reconciler.counters.republished == 1
    with database.read() as c:
        assert set(publishing.published_queued(c)) == set(ids)


def test_a_job_that_was_put_off_is_not_called_lost(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """At its last attempt it waits to run alone. Its message goes out again, for a worker that has room."""
    caplog.set_level("INFO", logger="helix_jobs")
    _, ids = stored_batch(database, 3)
    with database.write() as c:
        c.execute(update(jobs).where(jobs.c.id == ids[0]).values(attempts=2))
    broker = Busy()
    reconciler = broker.reconciler(database)
    reconciler.tick()
    broker.messages = broker.messages[2:]
    for _ in range(3):
        reconciler.tick()
    assert sorted(broker.messages) == sorted(ids)
    assert reconciler.counters.republished == 1
    assert "the messages of 1 job were lost on the way" in caplog.text
    assert (
        "1 job at the last attempt had no message, because a worker had put it off until it can run alone"
        in caplog.text
    )


def test_a_job_that_was_put_off_is_not_counted_as_lost_by_an_empty_broker_either(database: Database) -> None:
    """Else one such job on an idle service raises the figure every half minute."""
    _, ids = stored_batch(database, 2)
    with database.write() as c:
        c.execute(update(jobs).where(jobs.c.id == ids[0]).values(attempts=2))
    broker = Busy()
    broker.least = 0
    clock = [0.0]
    reconciler = Reconciler(database, broker, clock=lambda: clock[0])
    reconciler.tick()
    broker.messages.clear()
    for clock[0] in (1.0, 40.0, 41.0):
        reconciler.tick()
    assert sorted(broker.messages) == sorted(ids), "both are sent again"
    assert reconciler.counters.republished == 1


@pytest.mark.parametrize("least", [0, 1], ids=["empty", "busy"])
@pytest.mark.parametrize("garbage", ["yesterday", "", "2999-13-45 99:00:00", "12"])
def test_a_mark_that_is_no_time_costs_its_job_alone(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture, garbage: str, least: int
) -> None:
    """Somebody changed a row by hand; the messages of the others are found all the same."""
    _, ids = stored_batch(sqlite_database, 3)
    broker = Busy()
    broker.least = least
    reconciler = broker.reconciler(sqlite_database)
    reconciler.tick()
    with sqlite_database.write() as c:
        c.exec_driver_sql("UPDATE jobs SET published_at = ? WHERE id = ?", (garbage, ids[0]))
    broker.messages.clear()
    for _ in range(4):
        reconciler.tick()
    assert set(broker.messages) == set(ids)
    # An empty broker is asked about the newest alone.
    assert ("1 job cannot be read as published" in caplog.text) is (least == 1 or garbage > "2")
    with sqlite_database.read() as c:
        assert set(publishing.published_queued(c)) == set(ids)


def test_a_mark_that_is_no_time_is_put_right_by_the_check(sqlite_database: Database) -> None:
    _, ids = stored_batch(sqlite_database, 2)
    with sqlite_database.write() as c:
        publishing.mark_published(c, ids, now())
        c.exec_driver_sql("UPDATE jobs SET published_at = 'yesterday' WHERE id = ?", (ids[0],))
    (finding,) = check_rows(sqlite_database, repair=True)
    assert finding.what == "values of jobs.published_at that cannot be read"
    assert check_rows(sqlite_database, repair=False) == []
    with sqlite_database.read() as c:
        assert set(publishing.published_queued(c)) == {ids[1]}
