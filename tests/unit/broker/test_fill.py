"""The loop that publishes waiting jobs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from helix_jobs.broker.fill import Filled, fill_broker
from helix_jobs.errors import BrokerUnreachableError
from helix_jobs.storage import publishing
from tests.store_helpers import stored_batch

if TYPE_CHECKING:
    from collections.abc import Callable


class Publisher:
    """Takes messages until it has had ``limit`` of them; ``others`` wait in the broker beside them."""

    def __init__(self, limit: int = 1000, others: int = 0) -> None:
        self.chunks: list[list[int]] = []
        self.others = others
        self._limit = limit

    def depth(self):
        return self.others + sum(map(len, self.chunks))

    def turn(self):
        return nullcontext()

    def publish(self, jobs):
        if sum(map(len, self.chunks)) + len(jobs) > self._limit:
            raise BrokerUnreachableError("full")
        self.chunks.append([job.id for job in jobs])


def unpublished(database) -> list[int]:
    with database.read() as c:
        return [job.id for job in publishing.publishable(c, 1000)]


def sent(chunks):
    return [filled.published for filled in chunks]


def test_it_publishes_in_chunks_until_the_window_is_full(database):
    _, ids = stored_batch(database, 10)
    publisher = Publisher()
    assert sent(fill_broker(database, publisher, 7, 3)) == [3, 3, 1]
    assert publisher.chunks == [ids[:3], ids[3:6], ids[6:7]]
    assert unpublished(database) == ids[7:]


def test_it_ends_where_nothing_waits(database):
    stored_batch(database, 4)
    assert sent(fill_broker(database, Publisher(), 100, 3)) == [3, 1]
    assert list(fill_broker(database, Publisher(), 100, 3)) == []


@pytest.mark.parametrize(
    ("waiting", "looks"), [(0, [1]), (4, [1, 3, 3]), (6, [1, 3, 3, 2]), (7, [1, 3, 3, 2]), (20, [1, 3, 3, 2])]
)
def test_it_looks_once_whether_a_job_waits_and_then_reads_what_it_sends(database, monkeypatch, waiting, looks):
    """A tick that finds nothing takes no turn; one that finds some reads each job once."""
    asked, turns = [], []
    read = publishing.publishable

    def note(connection, limit, **options):
        asked.append(limit)
        return read(connection, limit, **options)

    class Turns(Publisher):
        def turn(self):
            turns.append(len(asked))
            return nullcontext()

    if waiting:
        stored_batch(database, waiting)
    monkeypatch.setattr(publishing, "publishable", note)
    assert sum(sent(fill_broker(database, Turns(), 8, 3))) == min(waiting, 8)
    assert asked == looks
    assert turns == list(range(1, len(looks)))


@pytest.mark.parametrize("others", [7, 10])
def test_without_room_nothing_is_published(database, others):
    stored_batch(database, 1)
    publisher = Publisher(others=others)
    assert list(fill_broker(database, publisher, 7, 3)) == []
    assert publisher.chunks == []


def test_beside_workers_that_keep_up_it_sends_what_there_was_room_for_and_ends(database):
    stored_batch(database, 30)
    publisher = Publisher(others=3)
    for _ in fill_broker(database, publisher, 10, 3):
        publisher.others -= 3
    assert sum(map(len, publisher.chunks)) == 7


class InStep:
    """A publisher without a turn: while it publishes, before it marks, ``meanwhile`` happens."""

    def __init__(self, messages: list[int]) -> None:
        self.meanwhile: Callable[[], object] = lambda: None
        self._messages = messages

    def depth(self):
        return len(self._messages)

    def turn(self):
        return nullcontext()

    def publish(self, jobs):
        self._messages.extend(job.id for job in jobs)
        self.meanwhile()


def test_publishers_side_by_side_without_turns_send_a_chunk_each_past_the_window(database):
    """The worst order of a client and two workers: each reads the jobs before another has marked them."""
    stored_batch(database, 200)
    messages: list[int] = []
    publishers = [InStep(messages) for _ in range(3)]
    window, chunk = 50, 5
    loops = [fill_broker(database, publisher, window, chunk) for publisher in publishers]
    for publisher, following in zip(publishers, loops[1:], strict=False):
        publisher.meanwhile = lambda loop=following: next(loop, None)
    for _ in loops[0]:
        pass
    assert messages[: 3 * chunk] == 3 * messages[:chunk]  # they did get in each other's way
    assert window <= len(messages) < window + 3 * chunk


def test_whoever_stops_between_two_chunks_leaves_the_rest(database):
    _, ids = stored_batch(database, 5)
    assert next(fill_broker(database, Publisher(), 100, 2)) == Filled(2)
    assert unpublished(database) == ids[2:]


def test_what_was_published_before_an_error_is_known_and_marked(database):
    _, ids = stored_batch(database, 5)
    published = []
    with pytest.raises(BrokerUnreachableError):
        published.extend(fill_broker(database, Publisher(limit=4), 100, 2))
    assert sent(published) == [2, 2]
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
