"""BrokerState: the state that a Redis-compatible server reports."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helix_jobs.broker.older_keys import OlderKey, find_older_keys
from helix_jobs.broker.publisher import CeleryPublisher, QueueNames

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerState:
    """The server's state at one moment.

    Attributes:
        server: Name and version.
        queue: The queue's name; None if the database, which knows the name, does not answer.
        messages: Number of waiting job ids.
        unacked: Number of job ids delivered but not acknowledged.
        used_memory: Bytes.
        maxmemory: Bytes; 0 is no limit.
        policy: The eviction policy at the memory limit.
        appends: Whether the server writes an append-only file.
        is_saving: False if the server's last attempt to write to disk failed.
        skew_seconds: How far the server's clock is ahead of this machine's.
        older_keys: Keys that a version of Helix without installation ids left there.
    """

    server: str
    queue: str | None
    messages: int
    unacked: int
    used_memory: int
    maxmemory: int
    policy: str
    appends: bool
    is_saving: bool
    skew_seconds: float
    older_keys: tuple[OlderKey, ...] = ()


def read_broker_state(url: str, names: QueueNames | None) -> BrokerState:
    """Read the server's state; without ``names``, nothing about the queue.

    Raises:
        BrokerUnreachableError: The server does not answer, refuses access, or would not deliver a message.
        ConfigurationError: A key under the queue's names cannot be the queue.
    """
    publisher = CeleryPublisher(url, names or QueueNames("none"))
    try:
        if names is None:
            return publisher.ask(lambda client: _read(client, names, 0))
        publisher.check_keys()
        publisher.probe()
        messages = publisher.depth()
        return publisher.ask(lambda client: _read(client, names, messages))
    finally:
        publisher.close()


def _read(client: Any, names: QueueNames | None, messages: int) -> BrokerState:  # noqa: ANN401  (kombu has no types)
    asked = time.time()
    seconds, microseconds = client.time()
    # Compare with the time half-way between question and answer.
    skew = seconds + microseconds / 1e6 - (asked + time.time()) / 2
    info: Mapping[str, Any] = client.info("all")
    return BrokerState(
        server=_server(info),
        queue=None if names is None else names.queue,
        messages=messages,
        unacked=0 if names is None else int(client.zcard(names.unacked_index)),
        used_memory=int(info.get("used_memory", 0)),
        maxmemory=int(info.get("maxmemory", 0)),
        policy=str(info.get("maxmemory_policy", "unknown")),
        appends=bool(info.get("aof_enabled", 0)),
        is_saving=all(info.get(name, "ok") == "ok" for name in ("aof_last_write_status", "rdb_last_bgsave_status")),
        skew_seconds=skew,
        older_keys=find_older_keys(client),
    )


def _server(info: Mapping[str, Any]) -> str:
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info.get('redis_version', 'of unknown version')}"
