"""Audit: finds exactly the jobs whose message was lost, while the broker stays busy.

An empty broker shows that messages were lost (see ``reconciler``), but the broker of a busy service is never empty. So
every few minutes the audit compares the ids of the jobs that should have a message with the ids in the broker, waiting
or delivered. A job that is missing in two audits in a row, with the same time of publication, has lost its message: a
message on its way during one audit (just popped, about to be marked) has arrived by the next.

No clock of another machine is read: only a job missing in both audits counts.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.broker.messages import job_id_of_message
from helix_jobs.observability.rounds import come_round
from helix_jobs.redis_url import MEMORY_URL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

    from helix_jobs.broker.publisher import CeleryPublisher

# Messages read at a time, and in all. Somebody may have put millions there; then the audit gives no answer.
_PAGE: Final = 1_000
MOST_MESSAGES: Final = 100_000


def missing(
    published: Mapping[int, datetime], known: set[int], before: Mapping[int, datetime]
) -> tuple[dict[int, datetime], list[int]]:
    """Compare one audit with the audit before it.

    Args:
        published: Job id -> time of publication, for waiting jobs; read before ``known``.
        known: Job ids in the broker.
        before: The jobs missing in the audit before.

    Returns:
        The jobs missing now, and the ids of those that were missing before.
    """
    absent = {job_id: moment for job_id, moment in published.items() if job_id not in known}
    lost = [job_id for job_id, moment in absent.items() if before.get(job_id) == moment]
    return absent, lost


class Audit:
    """Remembers the missing jobs from audit to audit.

    Args:
        interval: Seconds between audits.
        clock: Monotonic seconds.
    """

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._looked_at = clock()
        self._missing: dict[int, datetime] = {}

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next audit."""
        return self._clock() - self._looked_at >= self._interval

    def look(self, published: Mapping[int, datetime], known: set[int] | None) -> list[int]:
        """Do one audit and return the ids of the jobs whose message was lost.

        Args:
            published: As for `missing`.
            known: As for `missing`; None if the ids cannot be listed.
        """
        self._looked_at = self._clock()
        if known is None:
            self._missing = {}
            return []
        self._missing, lost = missing(published, known, self._missing)
        return lost


def read_known_ids(publisher: CeleryPublisher) -> set[int] | None:
    """The job ids of all messages in a Redis broker; None if there are too many to read, and for one in memory.

    Raises:
        BrokerUnreachableError: The broker does not answer.
    """
    names = publisher.names
    if publisher.url == MEMORY_URL:
        return None

    def read(client: Any) -> set[int] | None:  # noqa: ANN401  (redis-py's client)
        # Delivered messages first: one that is given back meanwhile is found among the waiting ones.
        if client.hlen(names.unacked) + sum(client.llen(key) for key in names.lists) > MOST_MESSAGES:
            return None
        texts = [*_delivered(client, names.unacked), *(text for key in names.lists for text in _waiting(client, key))]
        # Delivered messages once more, for those taken from the lists before the lists were read.
        texts += _delivered(client, names.unacked)
        found = (_job_id(text, names.queue) for text in texts)
        return {job_id for job_id in found if job_id is not None}

    return publisher.ask(read)


def _waiting(client: Any, key: str) -> Iterator[Any]:  # noqa: ANN401
    """Read from the newest to the oldest: new messages shift unread ones to higher positions, so none is skipped."""
    start = 0
    while page := client.lrange(key, start, start + _PAGE - 1):
        come_round()
        yield from page
        start += _PAGE


def _delivered(client: Any, key: str) -> Iterator[Any]:  # noqa: ANN401
    """Read delivered messages. Each value is a list of the message, its exchange and its routing key."""
    cursor = None
    while cursor != 0:
        cursor, page = client.hscan(key, cursor or 0, count=_PAGE)
        come_round()
        yield from page.values()


def _job_id(text: bytes | str, queue: str) -> int | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return job_id_of_message(found[0] if isinstance(found, list) and found else found, queue)
