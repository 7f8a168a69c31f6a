"""The worker's connections: one client a channel, and the pool that Celery replaces is not held on to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from helix_jobs.broker.celery.app import app
from helix_jobs.broker.celery.transport import Channel
from helix_jobs.broker.publisher import QueueNames, transport_options

if TYPE_CHECKING:
    from celery import Celery

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
