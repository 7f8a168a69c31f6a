"""Publishers of one queue take turns, so that they do not send the same jobs."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from helix_jobs.broker import publishing_turn as turns
from helix_jobs.broker.fill import fill_broker
from helix_jobs.broker.publisher import CeleryPublisher, QueueNames
from helix_jobs.errors import BrokerUnreachableError
from tests.redis_client import redis_client
from tests.store_helpers import stored_batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import PublishableJob

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows"),
]

NAMES = QueueNames("one")


class Interrupted(CeleryPublisher):
    """While it publishes for the first time, before it marks, another begins."""

    def __init__(self, url: str, other: threading.Thread) -> None:
        super().__init__(url, NAMES)
        self._other = other

    def publish(self, jobs: Sequence[PublishableJob]) -> None:
        super().publish(jobs)
        if self._other.ident is None:
            self._other.start()
            self._other.join(0.5)  # it would be done, could it go on


def fill(database: Database, publisher: CeleryPublisher) -> int:
    return sum(filled.published for filled in fill_broker(database, publisher, 1000, 5))


@pytest.fixture
def publisher(empty_redis: str) -> Iterator[CeleryPublisher]:
    publisher = CeleryPublisher(empty_redis, NAMES)
    yield publisher
    publisher.close()


def test_who_publishes_beside_another_sends_none_of_the_same_jobs(
    database: Database, empty_redis: str, publisher: CeleryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 60.0)  # a busy machine may be slow, too
    stored_batch(database, 30)
    sent: list[int] = []
    other = threading.Thread(target=lambda: sent.append(fill(database, publisher)))
    first = Interrupted(empty_redis, other)
    sent.append(fill(database, first))
    other.join()
    first.close()
    assert sum(sent) == publisher.depth() == 30


def test_a_turn_leaves_no_key(empty_redis: str, publisher: CeleryPublisher) -> None:
    with redis_client(empty_redis) as client:
        with publisher.turn():
            assert 0 < client.pttl(NAMES.publishing) <= turns.TURN_SECONDS * 1000
        assert client.keys() == []


def test_whoever_died_in_its_turn_keeps_nobody_from_publishing(
    database: Database, empty_redis: str, publisher: CeleryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.2)
    stored_batch(database, 3)
    with redis_client(empty_redis) as client:
        client.set(NAMES.publishing, "", px=200)
        assert fill(database, publisher) == 3
        assert not client.exists(NAMES.publishing)


def test_a_turn_that_does_not_end_keeps_nobody_from_publishing(
    database: Database, empty_redis: str, publisher: CeleryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.2)
    stored_batch(database, 3)
    with redis_client(empty_redis) as client:
        client.set(NAMES.publishing, "")
        assert fill(database, publisher) == 3
        assert client.exists(NAMES.publishing), "another's turn"


def test_a_turn_that_has_lapsed_is_left_to_the_next(
    empty_redis: str, publisher: CeleryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.05)
    with redis_client(empty_redis) as client:
        with publisher.turn():
            time.sleep(0.1)
            client.set(NAMES.publishing, "", nx=True)
        assert client.exists(NAMES.publishing)


def test_a_broker_that_refuses_a_turn_is_told(empty_redis: str, publisher: CeleryPublisher) -> None:
    with redis_client(empty_redis) as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(BrokerUnreachableError, match="refuses"), publisher.turn():
                pass
        finally:
            client.config_set("maxmemory", 0)
