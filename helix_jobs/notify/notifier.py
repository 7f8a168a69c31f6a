"""Notifier: finds what there is to tell of batches, and sends what is due."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import HelixError, UnreadableRowError, without_text
from helix_jobs.notify.channels import channels_of
from helix_jobs.notify.event import Event
from helix_jobs.storage.batch_news import batches_with_news, note_news
from helix_jobs.storage.notices import forget_old, is_any_due, settle, take_due

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helix_jobs.notify.channels import Channel
    from helix_jobs.notify_settings import NotifySettings
    from helix_jobs.storage.database import Database
    from helix_jobs.storage.notices import Notice

logger = logging.getLogger(__name__)

_PERCENT: Final = 100


class Notifier:
    """Looks when it is told to. Any number of processes may, each for itself.

    Trade-off: one thread sends one notice after the other, so a receiver that is slow delays the next notice. No job
    and no answer waits for it.

    Args:
        database: The truth.
        channels: Whom to tell; none leaves the notices to another process.
        failing: The share of ended jobs that have failed from which on people are told; None: never.
    """

    def __init__(self, database: Database, channels: Sequence[Channel], failing: float | None) -> None:
        self._database = database
        self._channels = tuple(channels)
        self._failing = failing
        self._unreadable: set[str] = set()

    @classmethod
    def of(cls, database: Database, settings: NotifySettings) -> Notifier:
        """The notifier that the settings ask for.

        Raises:
            ConfigurationError: A setting is missing or wrong.
        """
        failing = settings.notify_failing / _PERCENT if settings.notify_failing else None
        return cls(database, channels_of(settings), failing)

    def look(self, keep_on: Callable[[], bool] = lambda: True) -> None:
        """Store what is news, and send what is due while ``keep_on`` is true.

        Raises:
            DatabaseUnreachableError: The database does not answer.
        """
        now = datetime.now(UTC)
        with self._database.read() as c:
            found = batches_with_news(c, self._failing)
        for batch_id in found:
            self._note(batch_id, now)
        with self._database.read() as c:
            waits = bool(self._channels) and is_any_due(c, now)
        if not waits:
            return
        self._database.transact(lambda c: forget_old(c, now))
        while keep_on() and (notice := self._database.transact(lambda c: take_due(c, datetime.now(UTC)))) is not None:
            self._send(notice)

    def _note(self, batch_id: str, now: datetime) -> None:
        try:
            kinds = self._database.transact(lambda c: note_news(c, batch_id, self._failing, now))
        except UnreadableRowError as error:  # it must not keep people from hearing of the others
            if batch_id not in self._unreadable:
                logger.warning("nobody is told of batch %s: %s", batch_id, error)
            self._unreadable.add(batch_id)
        else:
            for kind in kinds:
                logger.info("batch %s: %s", batch_id, kind)

    def _send(self, notice: Notice) -> None:
        event, reached, errors = Event.of(notice), list(notice.reached), []
        for channel in self._channels:
            if channel.name in reached:
                continue
            try:
                said = channel.send(event)
            except HelixError as error:
                errors.append(f"{channel.name}: {error}")
            except Exception as error:
                # Without its text: a library's message may hold an address with a password.
                logger.error("%s: unexpected error", channel.name, exc_info=without_text(error))  # noqa: TRY400
                errors.append(f"{channel.name}: unexpected error ({type(error).__name__})")
            else:
                reached.append(channel.name)
                logger.info("%s is sent by %s: %s", notice.kind, channel.name, said)
        why = "; ".join(errors) or None
        given_up = self._database.transact(lambda c: settle(c, notice, tuple(reached), why, datetime.now(UTC)))
        if why is not None:
            level = logging.WARNING if given_up or notice.attempts == 1 else logging.INFO
            then = "it is given up" if given_up else "it is tried again, for up to three days"
            logger.log(level, "%s (%s) is not delivered, %s: %s", notice.kind, notice.id, then, why)
