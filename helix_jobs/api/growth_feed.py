"""GrowthFeed: hears how answers grow, and tells the requests that wait for them."""

from __future__ import annotations

import logging
import secrets
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Final

from helix_jobs.broker.publisher import CeleryPublisher, EmbeddedBroker, broker_url, read_queue_names
from helix_jobs.broker.token_channel import Growth, channel_of
from helix_jobs.errors import HelixError
from helix_jobs.redis_url import MEMORY_URL

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from helix_jobs.settings import Settings
    from helix_jobs.storage.database import Database

    _Reader = tuple[asyncio.AbstractEventLoop, Callable[[Growth], None]]

logger = logging.getLogger(__name__)

_POLL_SECONDS: Final = 1.0
_AFTER_ERROR_SECONDS: Final = 1.0


class GrowthFeed:
    """Listens on a channel of its own, on a thread of its own, from the first request that streams.

    While the broker is away nothing is heard, and answers come whole at their end.

    Args:
        settings: Where the broker is.
        database: The database, for the channel's name.

    Attributes:
        listener: This server's name among listeners; requests carry it.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self.listener: Final = secrets.token_hex(8)
        self._settings = settings
        self._database = database
        self._lock = threading.Lock()
        # Several clients may wait for one job, under one idempotency key.
        self._readers: dict[int, list[_Reader]] = {}
        # The first try to listen is over, however it went.
        self._tried = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, patience: float = 1.0) -> None:
        """Listen, if nobody does yet; waits a little for the first try. Called by any thread.

        Who comes while the broker is away does not wait for it.
        """
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="helix-growth", daemon=True)
                self._thread.start()
        self._tried.wait(patience)

    def read(self, job_id: int, loop: asyncio.AbstractEventLoop, on_growth: Callable[[Growth], None]) -> None:
        """Have a loop's thread called with each piece of a job's answer."""
        with self._lock:
            self._readers.setdefault(job_id, []).append((loop, on_growth))

    def leave(self, job_id: int, on_growth: Callable[[Growth], None]) -> None:
        """End a ``read``."""
        with self._lock:
            left = [reader for reader in self._readers.pop(job_id, ()) if reader[1] != on_growth]
            if left:
                self._readers[job_id] = left

    def close(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except HelixError as error:
                logger.warning("answers are not streamed, and come whole at their end: %s", error)
            except Exception as error:  # noqa: BLE001  (redis has errors of its own, and sockets theirs)
                logger.warning("answers are not streamed, and come whole at their end: %s", type(error).__name__)
            self._tried.set()
            self._stopping.wait(_AFTER_ERROR_SECONDS)

    def _listen(self) -> None:
        """Hear until the connection breaks.

        Raises:
            HelixError: Broker or database do not answer.
            Exception: The connection broke.
        """
        settings = self._settings
        if settings.redis_url == MEMORY_URL:
            return
        if settings.redis_url is None and not EmbeddedBroker(settings.home).is_running():
            return
        publisher = CeleryPublisher(broker_url(settings), read_queue_names(self._database))
        try:
            heard = publisher.ask(lambda client: client.pubsub(ignore_subscribe_messages=True))
            with closing(heard):
                heard.subscribe(channel_of(publisher.names, self.listener))
                heard.get_message(timeout=_POLL_SECONDS)
                self._tried.set()
                while not self._stopping.is_set():
                    message = heard.get_message(timeout=_POLL_SECONDS)
                    if message is not None and (growth := Growth.of_message(message.get("data"))) is not None:
                        self._tell(growth)
        finally:
            publisher.close()

    def _tell(self, growth: Growth) -> None:
        with self._lock:
            readers = tuple(self._readers.get(growth.job_id, ()))
        for loop, on_growth in readers:
            with suppress(RuntimeError):  # the loop has just ended
                loop.call_soon_threadsafe(on_growth, growth)
