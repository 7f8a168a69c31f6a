"""kombu's Redis transport with one client a channel.

kombu builds a redis-py client for every message it receives and for every one it acknowledges, which takes about an
eighth of a busy worker's time. A client is only a handle on the channel's pool and may be used by any thread.
"""

from __future__ import annotations

from typing import Any

from celery.app import amqp
from kombu.connection import Connection as KombuConnection
from kombu.transport import redis


class Channel(redis.Channel):
    """A channel that keeps its client as long as its pool is the same."""

    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002  (kombu's signature)
        """The kept client; a new one for the event loop, which needs a connection of its own."""
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]  # kombu's
        kept = self._kept
        if kept is None or kept.connection_pool is not self.pool:
            kept = self._kept = super()._create_client()  # type: ignore[no-untyped-call]  # kombu's
        return kept


class Transport(redis.Transport):
    """Redis with that channel."""

    Channel = Channel


class Connection(KombuConnection):
    """Takes our transport where kombu would take its own for Redis; others (``memory://``, Sentinel) are left alone."""

    def get_transport_cls(self) -> Any:  # noqa: ANN401  (kombu's signature)
        """The transport's class."""
        found = super().get_transport_cls()  # type: ignore[no-untyped-call]  # kombu's
        return Transport if found is redis.Transport else found


class AMQP(amqp.AMQP):  # type: ignore[misc]  # celery has no types
    """What the Celery application makes its connections with."""

    Connection = Connection
