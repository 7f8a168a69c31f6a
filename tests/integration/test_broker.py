"""The embedded broker and the publisher against a real server."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from helix_jobs.broker.publisher import CeleryPublisher, EmbeddedBroker, QueueNames, ping
from helix_jobs.errors import BrokerUnreachableError, ConfigurationError
from helix_jobs.storage.records import PublishableJob
from tests.redis_client import redis_client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no embedded broker on Windows")


NAMES = QueueNames("one")


def jobs_of(*priorities: int) -> list[PublishableJob]:
    return [PublishableJob(number, priority) for number, priority in enumerate(priorities, start=1)]


@pytest.fixture
def publisher(empty_redis: str) -> Iterator[CeleryPublisher]:
    publisher = CeleryPublisher(empty_redis, NAMES)
    yield publisher
    publisher.close()


@pytest.fixture
def client(empty_redis: str) -> Iterator[Redis]:
    with redis_client(empty_redis) as opened:
        yield opened


def test_messages_carry_ids_and_lie_by_priority(publisher: CeleryPublisher, client: Redis) -> None:
    publisher.publish(jobs_of(0, 9, 4, 9))
    assert publisher.depth() == 4

    # kombu looks at the lists in this order; a message at the right end is the next one.
    first = client.lrange(NAMES.queue, 0, -1)
    ids = [json.loads(message)["headers"]["id"].split("-")[0] for message in reversed(first)]
    assert ids == ["2", "4"], "priority 9 lies where kombu looks first, in order"
    last = json.loads(client.lrange(NAMES.lists[9], 0, -1)[0])
    assert last["headers"]["task"] == "helix.run_job"
    assert len(json.dumps(last)) < 1000

    publisher.reset_queue()
    assert publisher.depth() == 0


def test_each_publication_has_an_id_of_its_own(publisher: CeleryPublisher, client: Redis) -> None:
    publisher.publish(jobs_of(9))
    publisher.publish(jobs_of(9))
    messages = client.lrange(NAMES.queue, 0, -1)
    assert len({json.loads(message)["headers"]["id"] for message in messages}) == 2


def test_reset_forgets_what_a_dead_worker_held(publisher: CeleryPublisher, client: Redis) -> None:
    client.zadd(NAMES.unacked_index, {"tag": 1})
    client.hset(NAMES.unacked, "tag", "[]")
    client.hset("unacked", "tag", "someone else's")
    publisher.reset_queue()
    assert {key.decode() for key in client.keys("*unacked*")} == {"unacked"}


def test_only_what_was_delivered_before_the_question_is_forgotten(publisher: CeleryPublisher, client: Redis) -> None:
    def deliver(tag: str) -> None:
        client.zadd(NAMES.unacked_index, {tag: 1})
        client.hset(NAMES.unacked, tag, "[]")

    def agree() -> bool:
        deliver("new")
        return True

    assert publisher.forget_delivered(lambda: pytest.fail("there is nothing to ask about")) == 0
    deliver("old")
    assert publisher.forget_delivered(lambda: False) == 0
    assert publisher.forget_delivered(agree) == 1
    assert client.hkeys(NAMES.unacked) == client.zrange(NAMES.unacked_index, 0, -1) == [b"new"]
    publisher.reset_queue()
    assert CeleryPublisher("memory://", NAMES).forget_delivered(lambda: True) == 0


def test_a_lost_connection_is_opened_again(publisher: CeleryPublisher, client: Redis) -> None:
    publisher.publish(jobs_of(1))
    client.execute_command("CLIENT", "KILL", "TYPE", "normal")
    publisher.publish(jobs_of(1, 2))
    assert publisher.depth() >= 3, "an uncertain batch is sent again"


def test_a_full_broker_refuses_politely(short_tmp: Path) -> None:
    broker = EmbeddedBroker(short_tmp)
    broker.start()
    publisher = CeleryPublisher(broker.url, NAMES)
    try:
        with redis_client(broker.url) as client:
            client.config_set("maxmemory", "1")
            with pytest.raises(BrokerUnreachableError, match=r"refuses: .*memory"):
                publisher.publish(jobs_of(1))
            client.config_set("maxmemory", "0")
        publisher.publish(jobs_of(1))
        assert publisher.depth() == 1
    finally:
        publisher.close()
        broker.stop()


def test_memory_works_within_a_process() -> None:
    publisher = CeleryPublisher("memory://", NAMES)
    ping("memory://")
    publisher.reset_queue()
    publisher.publish(jobs_of(0, 5))
    assert CeleryPublisher("memory://", NAMES).depth() == 2
    publisher.reset_queue()
    assert publisher.depth() == 0


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("redis://:s3cret@127.0.0.1:1/0", BrokerUnreachableError),
        ("nonsense://:s3cret@host", ConfigurationError),
        ("redis://:s3cret@host:port/0", ConfigurationError),
    ],
)
def test_what_cannot_be_reached_is_named_without_its_password(url: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        ping(url, timeout=2)
    assert "***" in str(caught.value)
    assert ".;" not in str(caught.value)
    assert error is ConfigurationError or "does not answer: " in str(caught.value)
    assert "s3cret" not in str(caught.value)
