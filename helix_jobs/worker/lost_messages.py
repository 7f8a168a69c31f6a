"""LostMessages: jobs that should have a message and have none. Their messages are sent again.

There are three signs. One of this worker's connections could not give back its deliveries (``stranded_messages``). The
broker has been empty for half a minute while jobs count as published: all published marks are removed. On a busy
broker, an exact comparison finds single lost messages (``audit``). The ids do not say why a message is missing. A job
at its last attempt also has no message while a worker has postponed it because it could not run alone there. Its
message is sent again, as another worker may have room, and does not count as lost.
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
    """The broker as this module sees it."""

    def forget_delivered(self, are_moot: Callable[[], bool], /) -> int:
        """Drop unacknowledged deliveries if ``are_moot``, asked after they were listed, agrees; returns how many."""


@dataclass(frozen=True, slots=True)
class EmptyBroker:
    """Since when (monotonic) the broker has been seen empty, and the newest publication at that time."""

    since: float
    latest_published_at: datetime


def judge_empty_broker(
    previous: EmptyBroker | None, *, depth: int, latest_published_at: datetime | None, now: float
) -> EmptyBroker | None:
    """Track how long the broker has been empty while jobs count as published; None unless both hold."""
    if depth > 0 or latest_published_at is None:
        return None
    return previous or EmptyBroker(now, latest_published_at)


class LostMessages:
    """Finds lost messages and removes their jobs' published marks, so that they are published again.

    For one thread.

    Args:
        database: The truth.
        broker: The broker, where deliveries of lost workers are dropped.
        known_ids: Which job ids the broker holds, waiting or delivered; None if they cannot be listed.
        stranded: Jobs whose messages this worker could not give back to the broker.
        unseen: Seconds the broker must have been empty before published jobs count as lost messages.
        audit: Seconds between audits while the broker is busy.
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
        """Search once for lost messages and act on the result.

        Args:
            depth: Messages that wait in the broker.

        Returns:
            How many jobs' messages seemed lost.

        Raises:
            UnreachableError: Broker or database does not answer.
        """
        return self._send_stranded() + self._look_at_empty(depth) + (self._compare() if self._audit.is_due else 0)

    def _send_stranded(self) -> int:
        if not self._stranded.ids:
            return 0
        count = send_again(self._stranded, self._database)
        if count:
            logger.warning(
                "the broker did not take back the messages of %s; they are sent again", counted(count, "job")
            )
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
        # Only jobs published before the broker became empty; the bound is exclusive.
        before = self._empty.latest_published_at + timedelta(microseconds=1)
        at_last, lost = self._database.transact(
            lambda c: (publishing.republish_last_attempts(c, before), publishing.republish_unseen(c, before))
        )
        count = at_last + lost
        self._empty = None
        if count:
            # Usually a worker holds these jobs already, waiting for a slot; the duplicates are harmless.
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
                "%s at the last attempt had no message, because a worker had put it off until it can run alone; it is "
                "sent again, because another worker may have room",
                counted(at_last, "job"),
            )
        return lost

    def _read(self, query: Callable[[Connection], T]) -> T:
        """Read the times of publication. An unreadable time is no mark: it is removed, and the times are read again."""
        try:
            with self._database.read() as connection:
                return query(connection)
        except (ValueError, TypeError):
            count = self._database.transact(publishing.unmark_unreadable)
            logger.warning("%s cannot be read as published: their messages are sent again", counted(count, "job"))
        with self._database.read() as connection:
            return query(connection)

    def _forget_stranded(self) -> None:
        """Drop lost workers' messages, which nobody will acknowledge, once every job they may name has ended."""
        count = self._broker.forget_delivered(self._deliveries_are_moot)
        if count:
            logger.info("dropped %d messages that lost workers had not acknowledged; their jobs have ended", count)

    def _deliveries_are_moot(self) -> bool:
        with self._database.read() as connection:
            return publishing.deliveries_are_moot(connection)
