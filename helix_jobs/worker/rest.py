"""Rest: why a worker must leave its device alone now, and until when."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import ConfigurationError
from helix_jobs.worker.rest_note import Wish, joined, read_rest_notes

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.opening_hours import OpeningHours
    from helix_jobs.worker.others import Others
    from helix_jobs.worker.rest_note import RestNote

logger = logging.getLogger(__name__)

# How often a worker looks whether it must rest, and a resting one whether it may work.
LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Rest:
    """A time in which a worker takes no jobs, and holds models only where the rest says so.

    Attributes:
        why: The reason, for people.
        until: When it ends, if that is known.
        at_once: Running jobs go back to the queue now.
        keeps_models: The models stay on the device.
    """

    why: str
    until: datetime | None
    at_once: bool = False
    keeps_models: bool = False

    @property
    def in_words(self) -> str:
        """The reason, and the end by this machine's clock."""
        if self.until is None:
            return self.why
        return f"{self.why}, until {self.until.astimezone():%a %Y-%m-%d %H:%M %Z}"


class RestRules:
    """Says whether a worker must rest. It reads two small files, so it may be asked every second.

    Args:
        hours: When the worker works; None for always.
        device: Its device's name in torch.
        directory: Where the device locks lie.
        others: Says whether somebody else uses the machine or the device; None where nobody asks.
    """

    def __init__(self, hours: OpeningHours | None, device: str, directory: Path, others: Others | None = None) -> None:
        self._hours = hours
        self._others = others
        self._device = device
        self._directory = directory
        self._notes: dict[Wish, tuple[RestNote, ...]] = {}
        self._troubles: dict[Wish, str] = {}
        self._postponed: tuple[str, datetime] | None = None

    def rest(self, now: datetime | None = None) -> Rest | None:
        """The rest of this moment; None if the worker may work. One that frees the device goes before a pause."""
        now = now or datetime.now(UTC)
        # Asked in any case, so that it is known how long somebody has been there, or gone.
        sign = None if self._others is None else self._others.sign()
        if (note := self._note(Wish.YIELD, now)) is not None:
            return Rest("somebody else has the device (helix yield)", note.until, note.at_once)
        if self._hours is not None and not self._hours.is_open(now):
            return Rest("outside its hours (HELIX_HOURS)", self._hours.next_change(now))
        if sign is not None:
            return Rest(f"{sign} (HELIX_YIELD_WHEN)", None)
        if (note := self._note(Wish.PAUSE, now)) is not None:
            return Rest("paused (helix pause --worker)", note.until, note.at_once, keeps_models=True)
        if self._postponed is not None and now < self._postponed[1]:
            return Rest(self._postponed[0], None)
        return None

    def postpone(self, why: str, until: datetime) -> None:
        """Have the worker rest until then where nothing else has it rest."""
        self._postponed = (why, until)

    def _note(self, wish: Wish, now: datetime) -> RestNote | None:
        """What the notes of this wish ask of this worker now."""
        return joined([note for note in self._latest_notes(wish) if note.applies(self._device, now)])

    def _latest_notes(self, wish: Wish) -> tuple[RestNote, ...]:
        """The notes, or where they cannot be read the last that could: a damaged file is nobody's wish.

        Trade-off: a worker that starts beside a damaged file works, though somebody may have wanted the device. A file
        that nobody can read must keep nobody from working for good.
        """
        try:
            self._notes[wish] = read_rest_notes(self._directory, wish)
            trouble = ""
        except (ConfigurationError, OSError) as error:
            trouble = str(error)
        if trouble and trouble != self._troubles.get(wish):
            logger.warning(
                "the notes of helix %s cannot be read, so the last ones that could be count: %s", wish, trouble
            )
        self._troubles[wish] = trouble
        return self._notes.get(wish, ())
