"""MootMessages: messages of jobs that need none, dropped in blocks.

Duplicates and forged ids are harmless, as no claim succeeds for them. But each is delivered, taken by a thread and
looked up alone, and thousands of them hold up the jobs behind. So where many in a short time led to nothing, those
that are next in line are looked up by the hundred, and dropped while they are of jobs that do not wait.

None can be missed. A job that begins to wait after it was looked up gets a message of its own, published after that;
what is dropped was in the broker before, and only while it is still next in line (see ``junk_sweep``).
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
# So many that led to nothing since the last look are no few duplicates.
MANY: Final = 50
# Blocks of each list in one go: what comes in as fast as it is dropped is not followed for ever.
MOST_BLOCKS: Final = 200


class MootMessages:
    """One worker's, to be called now and then, on one thread.

    Args:
        database: Says which jobs wait.
        publisher: To the broker, through a connection that nobody else waits for.
        void: How many messages this worker was given for nothing, since its start.
    """

    def __init__(self, database: Database, publisher: CeleryPublisher, void: Callable[[], int]) -> None:
        self._database = database
        self._publisher = publisher
        self._void = void
        self._seen = 0
        self._may_sweep = publisher.url != MEMORY_URL

    def look(self) -> int:
        """Drop what is moot and next in line, if there was much of it; returns how many messages.

        Raises:
            UnreachableError: Broker or database do not answer.
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
            logger.warning("dropped %s of jobs that do not wait, or do not exist", counted(total, "message"))
        return total

    def close(self) -> None:
        """Close the connection."""
        self._publisher.close()

    def _drop_block(self, client: Any) -> int:  # noqa: ANN401  (redis-py's client)
        try:
            return sweep(client, self._publisher.names.lists, self._are_wanted)
        except ResponseError:  # a server, or a user, without scripts: they are delivered one by one
            self._may_sweep = False
            return 0

    def _are_wanted(self, texts: Sequence[bytes]) -> list[bool]:
        ids = [_job_id(text, self._publisher.names.queue) for text in texts]
        with self._database.read() as c:
            waiting = publishing.queued_among(c, [job_id for job_id in ids if job_id is not None])
        return [job_id in waiting for job_id in ids]


def _job_id(text: bytes, queue: str) -> int | None:
    try:
        return job_id_of_message(json.loads(text), queue)
    except (ValueError, RecursionError):
        return None
