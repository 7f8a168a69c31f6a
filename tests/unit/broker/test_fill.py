"""The loop that publishes waiting jobs."""

from __future__ import annotations

import pytest

from helix_jobs.broker.fill import fill_broker
from helix_jobs.errors import BrokerUnreachableError
from helix_jobs.storage import publishing
from tests.store_helpers import stored_batch


class Publisher:
    """Takes messages until it has had ``limit`` of them."""

    def __init__(self, limit: int = 1000) -> None:
        self.chunks: list[list[int]] = []
        self._limit = limit

    def publish(self, jobs):
        if sum(map(len, self.chunks)) + len(jobs) > self._limit:
            raise BrokerUnreachableError("full")
        self.chunks.append([job.id for job in jobs])


def unpublished(database) -> list[int]:
    with database.read() as c:
        return [job.id for job in publishing.publishable(c, 1000)]


def test_it_publishes_in_chunks_until_the_room_is_used(database):
    _, ids = stored_batch(database, 10)
    publisher = Publisher()
    assert list(fill_broker(database, publisher, 7, 3)) == [3, 3, 1]
    assert publisher.chunks == [ids[:3], ids[3:6], ids[6:7]]
    assert unpublished(database) == ids[7:]


def test_it_ends_where_nothing_waits(database):
    stored_batch(database, 4)
    assert list(fill_broker(database, Publisher(), 100, 3)) == [3, 1]
    assert list(fill_broker(database, Publisher(), 100, 3)) == []


@pytest.mark.parametrize("room", [0, -3])
def test_without_room_nothing_is_published(database, room):
    stored_batch(database, 1)
    publisher = Publisher()
    assert list(fill_broker(database, publisher, room, 3)) == []
    assert publisher.chunks == []


def test_whoever_stops_between_two_chunks_leaves_the_rest(database):
    _, ids = stored_batch(database, 5)
    assert next(fill_broker(database, Publisher(), 100, 2)) == 2
    assert unpublished(database) == ids[2:]


def test_what_was_published_before_an_error_is_known_and_marked(database):
    _, ids = stored_batch(database, 5)
    published = []
    with pytest.raises(BrokerUnreachableError):
        published.extend(fill_broker(database, Publisher(limit=4), 100, 2))
    assert published == [2, 2]
    assert unpublished(database) == ids[4:]


def test_a_job_is_marked_once_the_broker_has_its_message(database, monkeypatch):
    """Dying in between costs a duplicate; the other order would lose a message."""
    _, ids = stored_batch(database, 2)
    publisher = Publisher()

    def die(*_):
        raise RuntimeError("killed")

    monkeypatch.setattr(publishing, "mark_published", die)
    with pytest.raises(RuntimeError):
        list(fill_broker(database, publisher, 100, 2))
    assert publisher.chunks == [ids]
    assert unpublished(database) == ids
