"""Keys that a Helix without installation ids left in Redis: one queue for all, which nobody reads any more.

Another program may use the same names. So a key counts only if it holds messages of Helix's task.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.broker.queue_names import PRIORITIES, PRIORITY_MARK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TASK: Final = "helix.run_job"
_QUEUE: Final = "helix"
_LISTS: Final = tuple(f"{_QUEUE}{PRIORITY_MARK}{step}" if step else _QUEUE for step in PRIORITIES)
_UNACKED: Final = "helix.unacked"
_UNACKED_INDEX: Final = "helix.unacked_index"


@dataclass(frozen=True, slots=True)
class OlderKey:
    """One left-over key.

    Attributes:
        name: The key.
        messages: How many messages it holds.
        bytes: The memory it takes; 0 if the server does not say.
    """

    name: str
    messages: int
    bytes: int


def find_older_keys(client: Any) -> tuple[OlderKey, ...]:  # noqa: ANN401  (redis-py's, which kombu hands out)
    """Find the left-over keys; none if this user may not read keys other than its own."""
    from redis.exceptions import ResponseError

    try:
        return tuple(_find(client))
    except ResponseError:
        return ()


def removal(keys: Sequence[OlderKey], server: str) -> str:
    """The command that removes the keys.

    Args:
        keys: At least one.
        server: The arguments that tell ``redis-cli`` where the server is.
    """
    names = " ".join('"' + key.name.replace("\x06", "\\x06").replace("\x16", "\\x16") + '"' for key in keys)
    return f"printf '%s\\n' 'DEL {names}' | redis-cli {server}"


def _find(client: Any) -> Iterator[OlderKey]:  # noqa: ANN401  (as above)
    for name in _LISTS:
        if client.type(name) == b"list" and _is_message(client.lindex(name, 0)):
            yield OlderKey(name, client.llen(name), _size(client, name))
    if client.type(_UNACKED) != b"hash":
        return
    _, some = client.hscan(_UNACKED, count=10)
    if some and all(_is_delivered(value) for value in some.values()):
        yield OlderKey(_UNACKED, client.hlen(_UNACKED), _size(client, _UNACKED))
        if client.type(_UNACKED_INDEX) == b"zset":
            yield OlderKey(_UNACKED_INDEX, client.zcard(_UNACKED_INDEX), _size(client, _UNACKED_INDEX))


def _size(client: Any, name: str) -> int:  # noqa: ANN401  (as above)
    from redis.exceptions import ResponseError

    try:
        return int(client.memory_usage(name) or 0)
    except ResponseError:  # the command is not allowed
        return 0


def _is_message(data: bytes | None) -> bool:
    try:
        return bool(json.loads(data or b"")["headers"]["task"] == _TASK)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _is_delivered(data: bytes) -> bool:
    """Whether this is kombu's record of a delivered message: the message, its exchange and its routing key."""
    try:
        return bool(json.loads(data)[0]["headers"]["task"] == _TASK)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return False
