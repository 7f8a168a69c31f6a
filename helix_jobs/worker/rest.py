"""Rest: why a worker must leave its device alone now, and until when."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import ConfigurationError
from helix_jobs.worker.yield_note import read_yield_note

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.opening_hours import OpeningHours
    from helix_jobs.worker.yield_note import YieldNote

logger = logging.getLogger(__name__)

# How often a worker looks whether it must rest, and a resting one whether it may work.
LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Rest:
    """A time in which a worker takes no jobs and holds no models.

    Attributes:
        why: The reason, for people.
        until: When it ends, if that is known.
        at_once: Running jobs go back to the queue now.
    """

    why: str
    until: datetime | None
    at_once: bool = False

    @property
    def in_words(self) -> str:
        """The reason, and the end by this machine's clock."""
        if self.until is None:
            return self.why
        return f"{self.why}, until {self.until.astimezone():%a %Y-%m-%d %H:%M %Z}"


class RestRules:
    """Says whether a worker must rest. It reads one small file, so it may be asked every second.

    Args:
        hours: When the worker works; None for always.
        device: Its device's name in torch.
        directory: Where the device locks lie.
    """

    def __init__(self, hours: OpeningHours | None, device: str, directory: Path) -> None:
        self._hours = hours
        self._device = device
        self._directory = directory
        self._note: YieldNote | None = None
        self._trouble = ""

    def rest(self, now: datetime | None = None) -> Rest | None:
        """The rest of this moment; None if the worker may work. Somebody's wish goes before the hours."""
        now = now or datetime.now(UTC)
        note = self._latest_note()
        if note is not None and note.applies(self._device, now):
            return Rest("somebody else has the device (helix yield)", note.until, note.at_once)
        if self._hours is not None and not self._hours.is_open(now):
            return Rest("outside its hours (HELIX_HOURS)", self._hours.next_change(now))
        return None

    def _latest_note(self) -> YieldNote | None:
        """The note, or where it cannot be read the last one that could: a damaged file is nobody's wish.

        Trade-off: a worker that starts beside a damaged file works, though somebody may have wanted the device. A file
        that nobody can read must keep nobody from working for good.
        """
        try:
            self._note = read_yield_note(self._directory)
            trouble = ""
        except (ConfigurationError, OSError) as error:
            trouble = str(error)
        if trouble and trouble != self._trouble:
            logger.warning("the note of helix yield cannot be read, so the last one that could be counts: %s", trouble)
        self._trouble = trouble
        return self._note
