"""A client for the server behind a broker's URL, for tests that look at what lies there or upset it."""

from __future__ import annotations

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry


def redis_client(url: str) -> Redis:
    """Connect to the server that kombu finds at ``url``.

    Each command is sent once: a second SHUTDOWN would end the server that took the first one's place.
    """
    return Redis.from_url(url.replace("redis+socket://", "unix://", 1), socket_timeout=5, retry=Retry(NoBackoff(), 0))
