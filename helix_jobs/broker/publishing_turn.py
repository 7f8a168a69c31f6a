"""A turn at publishing: one publisher at a time, so that a client and several workers do not send the same jobs.

Whoever publishes reads the waiting jobs, sends their messages and marks them. Two at once would each send what the
other has not marked yet, and every duplicate costs a worker a claim that fails.

The turn is a key in the broker that expires. So a publisher that is killed or frozen in its turn holds up the others
for ``TURN_SECONDS`` at most. Whoever has waited for so long publishes without a turn, since a duplicate is harmless.
Trade-off: a lock that its holder alone can release would exclude every duplicate, but a frozen holder would leave a
broker that runs dry.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import BrokerUnreachableError
from helix_jobs.observability.rounds import come_round

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A chunk of 1,000 messages, read, sent and marked one after the other (SQLite and the embedded broker, twenty chunks),
# took 0.04 s of the sender's processor time, and 0.19 to 0.47 s on a machine of two processors with much other work.
TURN_SECONDS: Final = 3.0
_LOOK_SECONDS: Final = 0.02


@contextmanager
def publishing_turn(ask: Callable[[Callable[[Any], Any]], Any], key: str) -> Iterator[None]:
    """Wait for the turn and hold it in the block.

    Args:
        ask: Calls a function with the Redis client and returns its answer.
        key: The turn's key.

    Raises:
        BrokerUnreachableError: The broker does not answer, or refuses.
    """
    taken_at = _take(ask, key)
    try:
        yield
    finally:
        # After that time the key has expired, and it may be another publisher's by now.
        if taken_at is not None and time.monotonic() - taken_at < TURN_SECONDS:
            with suppress(BrokerUnreachableError):  # it expires
                ask(lambda client: client.delete(key))


def _take(ask: Callable[[Callable[[Any], Any]], Any], key: str) -> float | None:
    """Return the monotonic time just before the turn was taken; None after a wait in vain."""
    deadline = time.monotonic() + TURN_SECONDS
    while True:
        come_round()
        now = time.monotonic()
        if ask(lambda client: client.set(key, "", nx=True, px=int(TURN_SECONDS * 1000))):
            return now
        if now >= deadline:
            return None
        time.sleep(_LOOK_SECONDS)
