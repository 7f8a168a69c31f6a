"""What a worker's connection cannot give back to the broker is noted, and sent again by the database's word."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from helix_jobs.broker.celery import deliveries
from helix_jobs.broker.celery.app import app
from helix_jobs.broker.publisher import CeleryPublisher, QueueNames, transport_options
from helix_jobs.broker.stranded_messages import StrandedMessages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kombu import Connection

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows"),
]

NAMES = QueueNames("one")


@dataclass(frozen=True)
class Job:
    id: int
    priority: int = 0


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> StrandedMessages:
    stranded = StrandedMessages()
    monkeypatch.setattr(deliveries, "stranded", stranded)
    return stranded


@pytest.fixture
def publisher(empty_redis: str) -> Iterator[CeleryPublisher]:
    publisher = CeleryPublisher(empty_redis, NAMES)
    publisher.publish([Job(7), Job(8)])
    yield publisher
    publisher.close()


@pytest.fixture
def connection(publisher: CeleryPublisher) -> Iterator[Connection]:
    with app.connection_for_read(publisher.url, transport_options=transport_options(publisher.url, NAMES)) as opened:
        yield opened


def take(channel: Any, count: int) -> list[Any]:
    """Messages that are delivered and not acknowledged."""
    taken: list[Any] = []
    channel.basic_qos(0, count)
    channel.queue_declare(NAMES.queue)
    channel.basic_consume(NAMES.queue, no_ack=False, callback=taken.append, consumer_tag="a-consumer")
    while len(taken) < count:
        channel.connection.drain_events(channel.connection, timeout=5)
    return taken


def fall_silent(monkeypatch: pytest.MonkeyPatch, channel: Any) -> None:
    def refuse(*_: object) -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr(channel, "conn_or_acquire", refuse)


def test_a_sound_connection_gives_everything_back(
    connection: Connection, publisher: CeleryPublisher, noted: StrandedMessages
) -> None:
    channel = connection.channel()
    take(channel, 2)
    channel.close()
    assert noted.ids == frozenset()
    assert publisher.depth() == 2


def test_a_connection_that_is_closed_in_vain_notes_what_it_held(
    connection: Connection, noted: StrandedMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = connection.channel()
    done, _ = take(channel, 2)
    done.ack()
    fall_silent(monkeypatch, channel)
    with pytest.raises(RedisConnectionError):
        channel.close()
    assert noted.ids == {8}


def test_a_rejection_that_does_not_get_through_is_noted_while_the_connection_stays(
    connection: Connection, publisher: CeleryPublisher, noted: StrandedMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = connection.channel()
    first, second = take(channel, 2)
    with monkeypatch.context() as patch:
        fall_silent(patch, channel)
        with pytest.raises(RedisConnectionError):
            first.reject()
        assert noted.ids == frozenset(), "it was to be dropped"
        with pytest.raises(RedisConnectionError):
            second.requeue()
    assert noted.ids == {8}
    assert publisher.depth() == 0


def test_a_delivery_that_may_be_recorded_without_an_answer_is_noted(
    connection: Connection, noted: StrandedMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = connection.channel()
    pipe_or_acquire = deliveries.redis.QoS.pipe_or_acquire

    def unanswered(self: Any, *_: Any, **__: Any) -> Any:
        monkeypatch.setattr(deliveries.redis.QoS, "pipe_or_acquire", pipe_or_acquire)
        raise RedisConnectionError("no answer")

    monkeypatch.setattr(deliveries.redis.QoS, "pipe_or_acquire", unanswered)
    with pytest.raises(RedisConnectionError):
        take(channel, 1)
    assert noted.ids == {7}
