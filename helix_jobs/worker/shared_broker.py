"""A worker's start and end with a broker that others may share."""

from __future__ import annotations

import logging
from subprocess import SubprocessError
from typing import TYPE_CHECKING

from helix_jobs.errors import HelixError
from helix_jobs.storage import publishing, workers

if TYPE_CHECKING:
    from helix_jobs.broker.embedded import EmbeddedBroker
    from helix_jobs.broker.publisher import CeleryPublisher
    from helix_jobs.storage.database import Database

logger = logging.getLogger(__name__)


def clear_stranded(database: Database, publisher: CeleryPublisher, worker_id: str) -> None:
    """Empty the broker and have every message sent again, if no other worker lives.

    Killed workers leave messages stranded there.

    Args:
        database: Says which workers live and which jobs wait.
        publisher: To the broker.
        worker_id: This worker, which has not begun.

    Raises:
        UnreachableError: Database or broker does not answer.
    """
    with database.read() as c:
        others = [worker for worker in workers.live_workers(c) if worker.id != worker_id]
    if not others:
        publisher.reset_queue()
        database.transact(publishing.republish_all)


def revive_broker(database: Database, embedded: EmbeddedBroker) -> bool:
    """Restart the embedded broker if it is gone, and have every message sent again.

    Returns:
        Whether the broker was gone.

    Raises:
        HelixError: It cannot be started, or the database does not answer.
    """
    if embedded.is_running() or not embedded.start():
        return False
    logger.warning("the embedded broker had ended; this worker started it again")
    database.transact(publishing.republish_all)
    return True


def leave_broker(embedded: EmbeddedBroker) -> None:
    """Stop using the embedded broker; the last user takes it down."""
    try:
        embedded.stop()
    except (HelixError, OSError, SubprocessError) as error:  # no descriptors, or a keeper that takes its time
        logger.warning("the embedded broker is left to its keeper: %s", error)
