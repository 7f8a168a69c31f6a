"""fill_broker: publishes waiting jobs. A client runs it after a submission, a worker's reconciler at each tick."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from helix_jobs.storage import answer_cache, publishing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from helix_jobs.storage.answer_cache import AnswerSetup
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.records import PublishableJob

# How many messages the broker is kept filled with. Trade-off: a larger window supplies workers for longer while nobody
# publishes, but a lost worker costs more duplicates.
WINDOW: Final = 10_000
# How many chunks are looked at together while jobs find their answers stored: to copy one costs less than to send it.
_STEPS_OF_ANSWERS: Final = 4


class Publisher(Protocol):
    """The broker as this loop sees it."""

    def depth(self) -> int:
        """Messages that wait in the broker."""

    def turn(self) -> AbstractContextManager[None]:
        """A context in which, as a rule, no other publisher publishes."""

    def publish(self, jobs: Sequence[PublishableJob], /) -> None:
        """Send one message for each job; on return the broker has them all."""


@dataclass(frozen=True, slots=True)
class Filled:
    """What became of a chunk of waiting jobs.

    Attributes:
        published: Messages sent.
        from_cache: Jobs that took a stored answer, and so need no message.
    """

    published: int
    from_cache: int = 0


def fill_broker(
    database: Database, publisher: Publisher, window: int, chunk: int, setup: AnswerSetup | None = None
) -> Iterator[Filled]:
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
        setup: Whose stored answers jobs take before they are published. None: the publisher knows of no worker's, so
            every job is published, and equal ones beside each other.

    Yields:
        What became of each chunk.

    Raises:
        BrokerUnreachableError: The broker does not answer, or refuses.
        DatabaseUnreachableError: The database does not answer.
    """
    room, finds_answers = window - publisher.depth(), False
    if room <= 0 or not _next_jobs(database, 1, setup):  # most ticks find nothing, and need no turn
        return
    while room > 0:
        with publisher.turn():
            room = min(room, window - publisher.depth())
            # Where one finds its answer, most do, as after a change of a few rows of a table.
            wanted = chunk * _STEPS_OF_ANSWERS if finds_answers else min(room, chunk)
            waiting = _next_jobs(database, wanted, setup) if room > 0 else []
            if not waiting:
                return
            taken = _take_answers(database, waiting, setup)
            jobs = [job for job in waiting if job.id not in taken][: min(room, chunk)]
            # Publish, then mark: a crash in between costs a duplicate message; in the other order it would lose one.
            if jobs:
                publisher.publish(jobs)
                _mark(database, [job.id for job in jobs])
        yield Filled(len(jobs), len(taken))
        if len(jobs) + len(taken) == len(waiting) < wanted:
            return
        room -= len(jobs)
        finds_answers = bool(taken)


def _next_jobs(database: Database, limit: int, setup: AnswerSetup | None) -> list[PublishableJob]:
    with database.read() as connection:
        return publishing.publishable(connection, limit, without_twins=setup is not None)


def _take_answers(database: Database, jobs: Sequence[PublishableJob], setup: AnswerSetup | None) -> set[int]:
    if setup is None:
        return set()
    ids, now = [job.id for job in jobs], datetime.now(UTC)
    with database.read() as connection:  # most find none, and need no write
        if not answer_cache.has_answers(connection, ids, setup):
            return set()
    return database.transact(lambda connection: answer_cache.take_answers(connection, ids, setup, now))


def _mark(database: Database, ids: Sequence[int]) -> None:
    database.transact(lambda connection: publishing.mark_published(connection, ids, datetime.now(UTC)))
