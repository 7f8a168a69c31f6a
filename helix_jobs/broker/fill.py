"""fill_broker: publishes waiting jobs. A client runs it after a submission, a worker's reconciler at each tick."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from helix_jobs.storage import publishing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import PublishableJob

# How many messages the broker is kept filled with. Trade-off: a larger window supplies workers for longer while nobody
# publishes, but a lost worker costs more duplicates.
WINDOW: Final = 10_000


class Publisher(Protocol):
    """The broker as this loop sees it."""

    def publish(self, jobs: Sequence[PublishableJob], /) -> None:
        """Send one message for each job; on return the broker has them all."""


def fill_broker(database: Database, publisher: Publisher, room: int, chunk: int) -> Iterator[int]:
    """Publish waiting jobs, the most urgent first, until ``room`` messages are sent or no job waits.

    Yields after each chunk, so that the caller can stop between two chunks, and knows how many were published before an
    error.

    Args:
        database: Where the jobs are.
        publisher: The broker.
        room: The most messages to send.
        chunk: How many messages to send at once.

    Yields:
        The number of jobs in each chunk.

    Raises:
        BrokerUnreachableError: The broker does not answer, or refuses.
        DatabaseUnreachableError: The database does not answer.
    """
    while room > 0:
        with database.read() as connection:
            jobs = publishing.publishable(connection, min(room, chunk))
        if not jobs:
            return
        # Publish, then mark: a crash in between costs a duplicate message; in the other order it would lose one.
        publisher.publish(jobs)
        _mark(database, [job.id for job in jobs])
        room -= len(jobs)
        yield len(jobs)


def _mark(database: Database, ids: Sequence[int]) -> None:
    database.transact(lambda connection: publishing.mark_published(connection, ids, datetime.now(UTC)))
