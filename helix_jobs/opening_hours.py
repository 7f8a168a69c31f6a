"""OpeningHours: when a worker works, by the clock on the wall.

``22:00-07:00`` is every night. ``mon-fri 22:00-07:00, sat-sun 00:00-24:00 Europe/Berlin`` names days and a time zone.
A span belongs to the day on which it begins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Final, NoReturn
from zoneinfo import ZoneInfo

from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN: Final = re.compile(r"(?:(?P<days>[a-z]{3}(?:-[a-z]{3})?)\s+)?(?P<begin>\d\d?:\d\d)\s*-\s*(?P<end>\d\d?:\d\d)")
# A time zone's name is the last word of the text.
_ZONE: Final = re.compile(r"\s+(?P<zone>[A-Za-z][\w+-]*(?:/[\w+-]+)*)$")
_HOUR_MINUTES: Final = 60
_DAY_MINUTES: Final = 24 * _HOUR_MINUTES
# No span is longer than a day, so a week and a day beyond it hold every change there is.
_WEEK: Final = 7
_LONGEST_GAP: Final = timedelta(hours=25)

Instants = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Span:
    """One span of opening hours.

    Attributes:
        days: The weekdays on which it begins; Monday is 0.
        begin: Minutes after midnight.
        end: Minutes after that midnight, up to a day after ``begin``.
    """

    days: frozenset[int]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class OpeningHours:
    """Spans of time in each week.

    Summer time moves the clock, and a span must never last longer than the clock says. So where the clock shows a time
    twice, a span begins at the second and ends at the first of the two. A time that the clock leaves out counts as the
    first one after it.

    Attributes:
        spans: They may overlap.
        zone: The time zone; None for this machine's own.
    """

    spans: tuple[Span, ...]
    zone: ZoneInfo | None = None

    @classmethod
    def parse(cls, text: str) -> OpeningHours:
        """Read hours as the module's docstring shows them.

        Raises:
            ConfigurationError: The text is not valid; the message names the part that is not, and what is.
        """
        found = _ZONE.search(text)
        zone = _zone(found["zone"]) if found else None
        rest = text[: found.start()] if found else text
        return cls(tuple(_span(part.strip().lower()) for part in rest.split(",")), zone)

    def is_open(self, moment: datetime) -> bool:
        """Whether an aware ``moment`` lies within a span."""
        return any(begin <= moment < end for begin, end in self._instants(_wall(moment, self.zone).date(), 1))

    def next_change(self, moment: datetime) -> datetime | None:
        """The next moment at which the hours begin or end, in UTC; None if they never do."""
        now = self.is_open(moment)
        changes = {instant for pair in self._instants(_wall(moment, self.zone).date(), _WEEK + 1) for instant in pair}
        later = sorted(instant for instant in changes if instant > moment)
        return next((instant for instant in later if self.is_open(instant) != now), None)

    def _instants(self, day: date, days: int) -> Iterable[Instants]:
        """Begin and end of every span that begins on the day before ``day`` or on one of ``days`` days from it."""
        for offset in range(-1, days + 1):
            began = day + timedelta(days=offset)
            midnight = datetime.combine(began, time())
            for span in self.spans:
                if began.weekday() in span.days:
                    begin, end = (midnight + timedelta(minutes=minutes) for minutes in (span.begin, span.end))
                    yield moment_shown(begin, self.zone, fold=1), moment_shown(end, self.zone, fold=0)


def moment_shown(wall: datetime, zone: ZoneInfo | None = None, *, fold: int) -> datetime:
    """The moment, in UTC, at which a clock shows ``wall``, the first or (``fold``) the second time.

    Where the clock leaves that time out, it is the first one after it.

    Args:
        wall: A naive time.
        zone: The clock's time zone; None for this machine's own.
        fold: 0 or 1.
    """
    shown = wall
    while shown - wall <= _LONGEST_GAP:
        moment = _as_utc(shown, zone, fold)
        if _wall(moment, zone) == shown:
            return moment
        shown += timedelta(minutes=1)  # the clock leaves this minute out
    return _as_utc(wall, zone, fold)


def _as_utc(wall: datetime, zone: ZoneInfo | None, fold: int) -> datetime:
    # A naive time is one of this machine's own time zone.
    return wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)


def _wall(moment: datetime, zone: ZoneInfo | None) -> datetime:
    """What the clock on the wall shows."""
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def checked_opening_hours(text: str) -> str:
    """The text itself, if it is valid.

    Raises:
        ConfigurationError: It is not.
    """
    OpeningHours.parse(text)
    return text


def _span(text: str) -> Span:
    found = _SPAN.fullmatch(text)
    if found is None:
        _refuse(text)
    begin, end = _minutes(found["begin"]), _minutes(found["end"])
    if begin in (_DAY_MINUTES, end):
        _refuse(text)
    first, _, last = (found["days"] or "mon-sun").partition("-")
    if first not in _DAYS or (last or first) not in _DAYS:
        _refuse(text)
    number = _DAYS.index(first)
    count = (_DAYS.index(last or first) - number) % _WEEK + 1
    days = frozenset((number + offset) % _WEEK for offset in range(count))
    return Span(days, begin, end if end > begin else end + _DAY_MINUTES)


def _minutes(text: str) -> int:
    hours, minutes = map(int, text.split(":"))
    total = hours * _HOUR_MINUTES + minutes
    if minutes >= _HOUR_MINUTES or total > _DAY_MINUTES:
        _refuse(text)
    return total


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError) as error:  # no such zone, a directory of zones, a hostile name
        raise ConfigurationError(
            f"HELIX_HOURS names the time zone {name!r:.100}, which is not known here; use a name such as "
            "Europe/Berlin, or none for this machine's own; the tzdata package knows all names"
        ) from error


def _refuse(text: str) -> NoReturn:
    raise ConfigurationError(
        f"HELIX_HOURS has {text!r:.100}; give hours such as 22:00-07:00, with days such as mon-fri before them, commas "
        "between several, and a time zone such as Europe/Berlin at the end if it is not this machine's"
    )
