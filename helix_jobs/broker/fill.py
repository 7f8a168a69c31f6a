"""fill_broker: publishes waiting jobs. A client runs it after a submission, a worker's reconciler at each tick."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from helix_jobs.storage import publishing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import PublishableJob

# How many messages the broker is kept filled with. Trade-off: a larger window supplies workers for longer while nobody
# publishes, but a lost worker costs more duplicates.
WINDOW: Final = 10_000


class Publisher(Protocol):
    """The broker as this loop sees it."""

    def depth(self) -> int:
        """Messages that wait in the broker."""

    def turn(self) -> AbstractContextManager[None]:
        """A context in which, as a rule, no other publisher publishes."""

    def publish(self, jobs: Sequence[PublishableJob], /) -> None:
        """Send one message for each job; on return the broker has them all."""


def fill_broker(database: Database, publisher: Publisher, window: int, chunk: int) -> Iterator[int]:
    """Publish waiting jobs, the most urgent first, until the broker holds ``window`` messages or no job waits.

    Yields after each chunk, so that the caller can stop between two chunks, and knows how many were published before an
    error. No more is sent than there was room for at first, so that it ends beside workers that keep up.

    A client and several workers may publish at once, and take turns, chunk by chunk, so that none sends jobs that
    another has yet to mark. A turn may lapse. So the depth is asked for in each turn: of P publishers side by side each
    sends one chunk at most past the window, the same jobs at worst.

    Args:
        database: Where the jobs are.
        publisher: The broker.
        window: How many messages the broker is to hold.
        chunk: How many messages to send at once.

    Yields:
        The number of jobs in each chunk.

    Raises:
        BrokerUnreachableError: The broker does not answer, or refuses.
        DatabaseUnreachableError: The database does not answer.
    """
    room = window - publisher.depth()
    if room <= 0 or not _next_jobs(database, 1):  # most ticks find nothing, and need no turn
        return
    while room > 0:
        with publisher.turn():
            room = min(room, window - publisher.depth())
            wanted = min(room, chunk)
            jobs = _next_jobs(database, wanted) if room > 0 else []
            if not jobs:
                return
            # Publish, then mark: a crash in between costs a duplicate message; in the other order it would lose one.
            publisher.publish(jobs)
            _mark(database, [job.id for job in jobs])
        yield len(jobs)
        if len(jobs) < wanted:
            return
        room -= len(jobs)


def _next_jobs(database: Database, limit: int) -> list[PublishableJob]:
    with database.read() as connection:
        return publishing.publishable(connection, limit)


def _mark(database: Database, ids: Sequence[int]) -> None:
    database.transact(lambda connection: publishing.mark_published(connection, ids, datetime.now(UTC)))
