"""Handover: a client hands stored jobs to the broker, so that a waiting worker gets them at once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from helix_jobs.broker.fill import WINDOW, fill_broker
from helix_jobs.broker.publisher import CeleryPublisher, EmbeddedBroker, broker_url, ping, read_queue_names
from helix_jobs.errors import HelixError
from helix_jobs.redis_url import MEMORY_URL

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.settings import Settings
    from helix_jobs.storage.database import Database

logger = logging.getLogger(__name__)

_CHUNK: Final = 1000


class Handover:
    """A submitting client's connection to the broker.

    Trade-off: workers publish too, so without a handover jobs would only start some seconds later. Publishing twice is
    harmless. So no fault in a handover may fail a submission.
    """

    def __init__(self, database: Database, publisher: CeleryPublisher) -> None:
        self._database = database
        self._publisher = publisher

    def publish(self) -> int:
        """Publish queued jobs up to the broker's window; returns how many. Raises no HelixError."""
        published = 0
        try:
            for filled in fill_broker(self._database, self._publisher, WINDOW, _CHUNK):
                published += filled.published
        except HelixError as error:
            logger.warning(
                "the batch is stored, but not all of its jobs were published; a worker publishes the rest: %s", error
            )
        return published

    def close(self) -> None:
        """Close the connection."""
        self._publisher.close()


def reach_broker(settings: Settings, database: Callable[[], Database]) -> Handover | None:
    """Connect to the broker; None if only a worker has one, which then publishes.

    Args:
        settings: The broker's address.
        database: Opens the database. Called only once the broker answers, so that otherwise no file is made.

    Raises:
        BrokerUnreachableError: HELIX_REDIS_URL is set but does not answer.
    """
    if settings.redis_url == MEMORY_URL:  # it would end with this process; each worker publishes into its own
        return None
    if settings.redis_url is not None:
        ping(broker_url(settings))
    else:
        settings.check_home()
        if not EmbeddedBroker(settings.home).is_running():
            return None
    opened = database()
    return Handover(opened, CeleryPublisher(broker_url(settings), read_queue_names(opened)))
