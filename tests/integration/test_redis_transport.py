"""The worker's connections: one client a channel, no pool held on to, and no socket left behind."""

from __future__ import annotations

import gc
import sys
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from kombu import Consumer, Exchange, Queue
from kombu.common import ignore_errors

from helix_jobs.broker.celery.app import app
from helix_jobs.broker.celery.transport import Channel
from helix_jobs.broker.publisher import QueueNames, transport_options
from tests.acceptance.faults.redis_server import RedisServer
from tests.worker_box import comes_true

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery
    from kombu import Connection, Message

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows"),
]


def connect(application: Celery, url: str):
    return application.connection_for_read(url, transport_options=transport_options(url, QueueNames("one")))


def test_a_channel_keeps_its_client(empty_redis: str) -> None:
    with connect(app, empty_redis) as connection:
        channel = connection.channel()
        assert isinstance(channel, Channel)
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
            assert first.ping()
        assert channel.client is not first, "the event loop's client has a connection of its own"


def test_a_new_pool_gets_a_new_client(empty_redis: str) -> None:
    with connect(app, empty_redis) as connection:
        channel = connection.channel()
        with channel.conn_or_acquire() as before:
            pass
        channel._disconnect_pools()
        with channel.conn_or_acquire() as after:
            assert after is not before
            assert after.connection_pool is channel.pool
            assert after.ping()


def test_other_transports_are_left_alone() -> None:
    with connect(app, "memory://") as connection:
        assert type(connection.channel()).__module__ == "kombu.transport.memory"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A broker that a test may end and start again."""
    # Short enough for its socket, which pytest's own directories are not on every system.
    with tempfile.TemporaryDirectory(prefix="hx-") as directory:
        server = RedisServer(Path(directory))
        server.start()
        yield server
        server.kill()


def application_connection(server: RedisServer, **options: float) -> Connection:
    """As ``connect``, with other limits."""
    return app.connection_for_read(
        server.url, transport_options=transport_options(server.url, QueueNames("one")) | options
    )


def consume(connection: Connection, queue: str, received: list[Message]) -> None:
    channel = connection.channel()
    consumer = Consumer(channel, [Queue(queue, channel=channel)], on_message=received.append)
    consumer.consume()


def sockets_to(server: RedisServer) -> int:
    ports = (found.raddr.port for found in psutil.Process().net_connections("tcp") if found.raddr)
    return sum(port == server.port for port in ports)


def test_no_socket_outlives_a_connection_whose_broker_went_away(server: RedisServer) -> None:
    received: list[Message] = []
    lost = connect(app, server.url)
    for queue in ("first", "second"):
        consume(lost, queue, received)
    lost.channel()
    lost.Producer().publish("text", routing_key="first", exchange="")
    while not received:
        lost.drain_events(timeout=10)
    with suppress(TimeoutError):
        lost.drain_events(timeout=0.2)
    assert sockets_to(server) >= 4
    server.kill()
    with suppress(lost.connection_errors):
        lost.drain_events(timeout=0.2)
    ignore_errors(lost, lost.close)
    assert sockets_to(server) == 0
    server.start()
    received[0].ack()
    assert sockets_to(server) == 0


def test_channels_close_without_a_word_once_the_broker_did_not_answer_one(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    silenced: list[Channel] = []
    ask_no_more = Channel.ask_no_more
    monkeypatch.setattr(Channel, "ask_no_more", lambda channel: (silenced.append(channel), ask_no_more(channel)))
    lost = application_connection(server, socket_timeout=0.5)
    for queue in ("first", "second", "third"):
        consume(lost, queue, [])
    channels = list(lost.default_channel.connection.channels)

    def all_wait() -> bool:
        with suppress(TimeoutError):
            lost.drain_events(timeout=0.2)
        return all(channel._in_poll for channel in channels if channel.active_queues)

    # A channel that waits for no answer is closed without a word anyway.
    assert comes_true(all_wait, 20)
    server.freeze()
    ignore_errors(lost, lost.close)
    assert sockets_to(server) == 0
    assert all(channel.closed for channel in channels)
    assert len(set(map(id, silenced))) >= len(channels) - 1, "the first alone waits for an answer"


def test_broadcasts_of_other_connections_go_on_when_one_is_lost(empty_redis: str, server: RedisServer) -> None:
    received: list[Message] = []
    broadcast = Exchange("news", type="fanout")
    with connect(app, empty_redis) as lives:
        lost = application_connection(server, socket_timeout=0.5)
        for connection in (lost, lives):
            channel = connection.channel()
            queue = Queue(exclusive=True, auto_delete=True, exchange=broadcast, channel=channel)
            Consumer(channel, [queue], on_message=received.append).consume()
        consume(lost, "first", [])
        with suppress(TimeoutError):
            lost.drain_events(timeout=0.2)
        server.freeze()
        ignore_errors(lost, lost.close)
        assert sockets_to(server) == 0
        with suppress(TimeoutError):  # it subscribes
            lives.drain_events(timeout=0.2)
        lives.Producer().publish("text", exchange=broadcast)
        while not received:
            lives.drain_events(timeout=10)


def test_a_lost_channel_is_not_kept_for_the_end_of_the_process(server: RedisServer) -> None:
    lost = connect(app, server.url)
    for queue in ("first", "second"):
        consume(lost, queue, [])
    with suppress(TimeoutError):
        lost.drain_events(timeout=0.2)
    kept = [weakref.ref(channel) for channel in lost.default_channel.connection.channels]
    server.kill()
    ignore_errors(lost, lost.close)
    del lost
    gc.collect()
    assert [channel() for channel in kept] == [None] * len(kept)
