"""fill_broker: publishes the jobs that wait. A client runs it after a submission, a worker's reconciler each tick."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from helix_jobs.storage import publishing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import PublishableJob

# Messages the broker is kept filled up to. Trade-off: a larger window supplies workers for longer while nobody
# publishes, and a lost worker costs more duplicates.
WINDOW: Final = 10_000


class Publisher(Protocol):
    """The broker as this loop sees it."""

    def publish(self, jobs: Sequence[PublishableJob], /) -> None:
        """Send one message for each job; when it returns, the broker has them all."""


def fill_broker(database: Database, publisher: Publisher, room: int, chunk: int) -> Iterator[int]:
    """Publish waiting jobs, the most urgent first, until ``room`` messages are sent or none waits.

    Yields after each chunk, so that the caller can stop between two of them and knows what was published before an
    error.

    Args:
        database: Where the jobs are.
        publisher: The broker.
        room: How many messages at most.
        chunk: How many of them at once.

    Yields:
        How many jobs a chunk had.

    Raises:
        BrokerUnreachableError: The broker does not answer, or refuses.
        DatabaseUnreachableError: The database does not answer.
    """
    while room > 0:
        with database.read() as connection:
            jobs = publishing.publishable(connection, min(room, chunk))
        if not jobs:
            return
        # Publish, then mark: dying in between costs a duplicate message; the other order would lose one.
        publisher.publish(jobs)
        _mark(database, [job.id for job in jobs])
        room -= len(jobs)
        yield len(jobs)


def _mark(database: Database, ids: Sequence[int]) -> None:
    database.transact(lambda connection: publishing.mark_published(connection, ids, datetime.now(UTC)))
