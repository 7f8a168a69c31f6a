"""LostMessages: jobs that should have a message and have none. Their messages are sent again.

Three ways show it. A connection of this worker's own could not give back what it had been delivered
(``stranded_messages``). A broker that has been empty for half a minute while jobs count as published has lost theirs:
all marks are taken off. On a busy broker an exact comparison does (``audit``). Why a message is missing, ids do not
say. A job at its last attempt has none, too, while a worker has put it off, as it could not run alone there; its
message is sent again for another worker, which may have room, and it does not count as lost.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar

from helix_jobs.storage import publishing
from helix_jobs.wording import counted
from helix_jobs.worker.audit import Audit
from helix_jobs.worker.stranded_messages import send_again

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlalchemy import Connection

    from helix_jobs.broker.stranded_messages import StrandedMessages
    from helix_jobs.storage.database import Database

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Deliveries(Protocol):
    """The broker as far as it is asked here."""

    def forget_delivered(self, are_moot: Callable[[], bool], /) -> int:
        """Drop what is delivered and not acknowledged if, asked after it was listed, ``are_moot`` agrees; how many."""


@dataclass(frozen=True, slots=True)
class EmptyBroker:
    """Since when (monotonic) the broker has been seen empty, and the newest publication at that moment."""

    since: float
    latest_published_at: datetime


def judge_empty_broker(
    previous: EmptyBroker | None, *, depth: int, latest_published_at: datetime | None, now: float
) -> EmptyBroker | None:
    """Follow how long the broker has been empty while jobs count as published; None while that is not so."""
    if depth > 0 or latest_published_at is None:
        return None
    return previous or EmptyBroker(now, latest_published_at)


class LostMessages:
    """Finds them, and takes the marks off their jobs, which are published anew then. One thread's.

    Args:
        database: The truth.
        broker: Where deliveries of lost workers are dropped.
        known_ids: Which job ids the broker holds, waiting or delivered; None if that cannot be said.
        stranded: What this worker could not give back to the broker.
        unseen: Seconds the broker must have been empty before published jobs count as lost messages.
        audit: Seconds between looks while the broker is busy.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        database: Database,
        broker: Deliveries,
        known_ids: Callable[[], set[int] | None],
        stranded: StrandedMessages,
        *,
        unseen: float,
        audit: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._broker = broker
        self._known_ids = known_ids
        self._stranded = stranded
        self._unseen = unseen
        self._clock = clock
        self._audit = Audit(audit, clock)
        self._empty: EmptyBroker | None = None

    def look(self, depth: int) -> int:
        """Look once and act on it.

        Args:
            depth: Messages that wait in the broker.

        Returns:
            How many jobs' messages seemed lost.

        Raises:
            UnreachableError: Broker or database do not answer.
        """
        return self._send_stranded() + self._look_at_empty(depth) + (self._compare() if self._audit.is_due else 0)

    def _send_stranded(self) -> int:
        if not self._stranded.ids:
            return 0
        count = send_again(self._stranded, self._database)
        if count:
            logger.warning("the broker took no messages back of %s: they are sent again", counted(count, "job"))
        return count

    def _look_at_empty(self, depth: int) -> int:
        latest = None
        if depth == 0:
            latest = self._read(publishing.latest_published_at)
            if latest is None:
                self._forget_stranded()
        now = self._clock()
        self._empty = judge_empty_broker(self._empty, depth=depth, latest_published_at=latest, now=now)
        if self._empty is None or now - self._empty.since < self._unseen:
            return 0
        # Only what was published when the emptiness began; the bound is exclusive.
        before = self._empty.latest_published_at + timedelta(microseconds=1)
        at_last, lost = self._database.transact(
            lambda c: (publishing.republish_last_attempts(c, before), publishing.republish_unseen(c, before))
        )
        count = at_last + lost
        self._empty = None
        if count:
            # Usually a worker holds them already, waiting for a slot; only the database could tell, and need not.
            logger.info("the broker is empty and %d jobs still wait: their messages are sent again, to be safe", count)
        return lost

    def _compare(self) -> int:
        published = self._read(publishing.published_queued)
        missing = self._audit.look(published, self._known_ids() if published else set())
        if not missing:
            return 0
        at_last = self._database.transact(lambda connection: publishing.unmark_missing(connection, missing))
        lost = len(missing) - at_last
        if lost:
            logger.warning("the messages of %s were lost on the way and are sent again", counted(lost, "job"))
        if at_last:
            logger.info(
                "%s at the last attempt without a message, put off until it can run alone: sent again, as another "
                "worker may have room",
                counted(at_last, "job"),
            )
        return lost

    def _read(self, query: Callable[[Connection], T]) -> T:
        """Read when messages were sent. What cannot be read as a time is no mark: it is taken off, and read again."""
        try:
            with self._database.read() as connection:
                return query(connection)
        except (ValueError, TypeError):
            count = self._database.transact(publishing.unmark_unreadable)
            logger.warning("%s cannot be read as published: their messages are sent again", counted(count, "job"))
        with self._database.read() as connection:
            return query(connection)

    def _forget_stranded(self) -> None:
        """Drop the messages of lost workers, which nobody will acknowledge, once every job they may name has ended."""
        count = self._broker.forget_delivered(self._deliveries_are_moot)
        if count:
            logger.info("dropped %d messages that lost workers had not acknowledged; their jobs have ended", count)

    def _deliveries_are_moot(self) -> bool:
        with self._database.read() as connection:
            return publishing.deliveries_are_moot(connection)
