"""MootMessages: messages of jobs that need none, dropped in blocks.

Duplicates, forged ids and messages of a paused batch are harmless, as no claim succeeds for them. But each is
delivered, taken by a thread and looked up alone, and thousands hold up the jobs behind them. So when many messages in a
short time led to nothing, the next ones in line are looked up by the hundred, and dropped if no job waits for them.

No job loses its message. A job that begins to wait after the look-up gets a new message, published later. Only messages
that were in the broker before are dropped, and only while they are still next in line (see ``junk_sweep``).
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from helix_jobs.broker.junk_sweep import sweep
from helix_jobs.broker.messages import job_id_of_message
from helix_jobs.redis_url import MEMORY_URL
from helix_jobs.storage import publishing
from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helix_jobs.broker.publisher import CeleryPublisher
    from helix_jobs.storage.database import Database

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
# This many void messages since the last call are more than a few duplicates.
MANY: Final = 50
# Most blocks of each list in one call: junk may come in as fast as it is dropped.
MOST_BLOCKS: Final = 200


class MootMessages:
    """Drops one worker's moot messages. Called now and then, on one thread.

    Args:
        database: Says which jobs wait.
        publisher: To the broker, over a connection that no other thread waits for.
        void: Gives the worker's count of void messages since its start.
    """

    def __init__(self, database: Database, publisher: CeleryPublisher, void: Callable[[], int]) -> None:
        self._database = database
        self._publisher = publisher
        self._void = void
        self._seen = 0
        self._may_sweep = publisher.url != MEMORY_URL

    def look(self) -> int:
        """Drop the moot messages next in line, if there were many; returns how many were dropped.

        Raises:
            UnreachableError: Broker or database does not answer.
        """
        seen, self._seen = self._seen, self._void()
        if not self._may_sweep or self._seen - seen < MANY:
            return 0
        total = 0
        for _ in range(MOST_BLOCKS):
            dropped = self._publisher.ask(self._drop_block)
            if not dropped:
                break
            total += dropped
        if total:
            messages = counted(total, "message")
            logger.warning("dropped %s of jobs that do not wait, are paused, or do not exist", messages)
        return total

    def close(self) -> None:
        """Close the connection."""
        self._publisher.close()

    def _drop_block(self, client: Any) -> int:  # noqa: ANN401  (redis-py's client)
        try:
            return sweep(client, self._publisher.names.lists, self._are_wanted)
        except ResponseError:  # a server, or a user, without scripts: junk is delivered one by one
            self._may_sweep = False
            return 0

    def _are_wanted(self, texts: Sequence[bytes]) -> list[bool]:
        ids = [_job_id(text, self._publisher.names.queue) for text in texts]
        with self._database.read() as c:
            waiting = publishing.wanted_among(c, [job_id for job_id in ids if job_id is not None])
        return [job_id in waiting for job_id in ids]


def _job_id(text: bytes, queue: str) -> int | None:
    try:
        return job_id_of_message(json.loads(text), queue)
    except (ValueError, RecursionError):
        return None
