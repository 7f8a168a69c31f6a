"""What a worker does about a broker that it may share with others, when it begins and when it ends."""

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
    """Start from the database alone if nobody else uses the broker: killed workers leave messages stranded.

    Args:
        database: Says who lives; every message is to be sent again.
        publisher: To the broker.
        worker_id: This worker, which has not begun.

    Raises:
        UnreachableError: Database or broker do not answer.
    """
    with database.read() as c:
        others = [worker for worker in workers.live_workers(c) if worker.id != worker_id]
    if not others:
        publisher.reset_queue()
        database.transact(publishing.republish_all)


def revive_broker(database: Database, embedded: EmbeddedBroker) -> bool:
    """Start the embedded broker again if it went away, and have every message sent again: nobody else would.

    Returns:
        Whether it had gone.

    Raises:
        HelixError: It cannot be started, or the database does not answer.
    """
    if embedded.is_running() or not embedded.start():
        return False
    logger.warning("the embedded broker had gone and was started again")
    database.transact(publishing.republish_all)
    return True


def leave_broker(embedded: EmbeddedBroker) -> None:
    """Use the embedded broker no longer; the last of its users takes it down."""
    try:
        embedded.stop()
    except (HelixError, OSError, SubprocessError) as error:  # no descriptors, or a keeper that takes its time
        logger.warning("the embedded broker is left to its keeper: %s", error)
