"""A lost message is found while the broker stays busy; one on its way is not taken for lost."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from store_helpers import stored_batch

from helix_jobs.jobs import store
from helix_jobs.jobs.audit import Audit, missing, read_known_ids
from helix_jobs.jobs.broker import CeleryPublisher, EmbeddedBroker, QueueNames
from helix_jobs.jobs.reconciler import Reconciler, ReconcilerConfig
from helix_jobs.jobs.store import PublishableJob

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.jobs.database import Database

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


def test_a_busy_brokers_lost_message_is_sent_again(database: Database) -> None:
    _, ids = stored_batch(database, 3)

    class Busy:
        """Never empty, and one message is lost on the way."""

        def __init__(self) -> None:
            self.messages: list[int] = []

        def depth(self) -> int:
            return max(1, len(self.messages))

        def publish(self, jobs) -> None:
            self.messages += [job.id for job in jobs]

        def forget_delivered(self, are_moot) -> int:  # noqa: ARG002
            return 0

    broker = Busy()
    reconciler = Reconciler(
        database,
        broker,
        config=ReconcilerConfig(window=10, audit=0.0),
        known_ids=lambda: set(broker.messages),
    )
    reconciler.tick()
    broker.messages.remove(ids[1])
    reconciler.tick()
    assert ids[1] not in broker.messages, "it may be on its way"
    for _ in range(2):
        reconciler.tick()
    assert sorted(broker.messages) == sorted(ids)
    assert reconciler.counters.republished == 1
    with database.read() as c:
        assert set(store.published_queued(c)) == set(ids)
