"""Outbox: sends the messages of stored requests to the broker, on a thread of its own.

No request waits for the broker: what it does not take, a worker sends some seconds later. A broker that is silent would
keep the thread for seconds each time. So the outbox notices it, and new requests are refused until it answers again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from helix_jobs.api.problems import Problem
from helix_jobs.bounds import MAX_PRIORITY
from helix_jobs.broker.publisher import CeleryPublisher, EmbeddedBroker, broker_url, read_queue_names
from helix_jobs.errors import HelixError, without_text
from helix_jobs.redis_url import MEMORY_URL
from helix_jobs.storage import publishing
from helix_jobs.storage.records import PublishableJob

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helix_jobs.settings import Settings
    from helix_jobs.storage.database import Database

logger = logging.getLogger(__name__)

# How long the broker may take for an answer until it counts as silent.
PATIENCE_SECONDS: Final = 2.0
# While it is silent, it is asked so often whether it answers again.
_PROBE_SECONDS: Final = 1.0
# A job is marked as published so long after it: most are claimed by then, and need no mark.
_MARK_SECONDS: Final = 0.25
_MOST: Final = 500
_RETRY_SECONDS: Final = 5


class Outbox:
    """Sends messages in the order in which they come. Every method may be called by any thread.

    Args:
        settings: Where the broker is.
        database: The database, for the queue's names and the marks of publication.
        clock: Monotonic seconds.
    """

    def __init__(self, settings: Settings, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._database = database
        self._clock = clock
        self._publisher: CeleryPublisher | None = None
        self._asked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        # Since when the call under way waits for the broker; None between two calls.
        self._since: float | None = None
        # The last call ended without an answer.
        self._was_silent = False
        self._unmarked: list[int] = []
        self._thread = threading.Thread(target=self._run, name="helix-outbox", daemon=True)
        self._thread.start()

    def send(self, job_id: int) -> None:
        """Have a job's message sent. Returns at once."""
        self._asked.put(job_id)

    def require_broker(self) -> None:
        """Refuse a request while the broker is silent: no worker would hear of it.

        Raises:
            Problem: It is.
        """
        since = self._since
        if self._was_silent or (since is not None and self._clock() - since > PATIENCE_SECONDS):
            raise Problem(
                503,
                "the broker does not answer; try again when it does",
                code="broker_unreachable",
                retry_after=_RETRY_SECONDS,
            )

    def close(self, timeout: float = 1.0) -> None:
        """End the thread and close the connection; a thread that waits for the broker is left alone."""
        self._asked.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (job_ids := self._next()) is not None:
            try:
                if job_ids or self._was_silent:
                    self._send(job_ids)
                else:
                    self._mark()
            except HelixError as error:
                if job_ids:
                    logger.warning("%d requests are stored, and a worker publishes them: %s", len(job_ids), error)
            except Exception as error:  # requests that come later must be sent as well
                logger.exception("a request's message is not sent", exc_info=without_text(error))
        if self._publisher is not None:
            self._publisher.close()

    def _next(self) -> list[int] | None:
        """The jobs to send; none where it is time for something else, None at the end."""
        patience = _PROBE_SECONDS if self._was_silent else _MARK_SECONDS if self._unmarked else None
        found: list[int] = []
        try:
            job_id = self._asked.get(timeout=patience)
            while job_id is not None:
                found.append(job_id)
                if len(found) == _MOST:
                    return found
                job_id = self._asked.get_nowait()
        except queue.Empty:
            return found
        if found:
            self._asked.put(None)  # the end is met again once these are sent
        return found or None

    def _send(self, job_ids: Sequence[int]) -> None:
        """Send the messages, or only ask whether the broker answers."""
        self._since = began = self._clock()
        try:
            publisher = self._connected()
            if publisher is None:
                return
            if job_ids:
                # Not through the window of waiting jobs, which bulk work may fill.
                publisher.publish([PublishableJob(job_id, MAX_PRIORITY) for job_id in job_ids])
            else:
                publisher.ask(lambda client: client.ping())
        finally:
            self._was_silent, self._since = self._clock() - began > PATIENCE_SECONDS, None
        self._unmarked += job_ids

    def _mark(self) -> None:
        job_ids, self._unmarked = self._unmarked, []
        self._database.transact(lambda c: publishing.mark_published(c, job_ids, datetime.now(UTC)))

    def _connected(self) -> CeleryPublisher | None:
        """None while only a worker has a broker."""
        if self._publisher is None and self._settings.redis_url != MEMORY_URL:
            if self._settings.redis_url is None and not EmbeddedBroker(self._settings.home).is_running():
                return None
            self._publisher = CeleryPublisher(broker_url(self._settings), read_queue_names(self._database))
        return self._publisher
