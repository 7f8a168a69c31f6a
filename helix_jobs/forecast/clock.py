"""The clock on the wall: times as a person writes them, and work that rests outside of opening hours."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Final

from helix_jobs.errors import InputError
from helix_jobs.opening_hours import moment_shown

if TYPE_CHECKING:
    from helix_jobs.opening_hours import OpeningHours

_CLOCK: Final = re.compile(r"(\d\d?):(\d\d)")
# Work that would take longer ends "never" for whoever reads it.
_LONGEST: Final = timedelta(days=3650)
# Whole weeks whose hours are counted one by one; later ones are like these. Somebody may name the year 9999.
_COUNTED: Final = timedelta(weeks=52)


def read_moment(text: str, now: datetime, *, option: str) -> datetime:
    """Read ``07:00`` (the next time that the clock shows it) or ``2026-12-01T07:00`` (with an offset, or local).

    Args:
        text: What a person wrote.
        now: An aware time.
        option: What it was written for, for messages.

    Raises:
        InputError: It is no such time, or lies in the past.
    """
    found = _CLOCK.fullmatch(text.strip())
    try:
        if found:
            return _next_shown(time(int(found[1]), int(found[2])), now)
        moment = datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{option} {text!r:.60} is no time; give one such as 07:00 or 2026-12-01T07:00") from error
    if moment <= now:
        raise InputError(f"{option} {text!r:.60} lies in the past; give a later time, or 07:00 for the next morning")
    return moment


def _next_shown(shown: time, now: datetime) -> datetime:
    """The next moment at which this machine's clock shows a time, or the first one after it where summer time skips it.

    Where the clock is put back, it shows a time twice.
    """
    today = now.astimezone().date()
    days = (datetime.combine(today + timedelta(days=offset), shown) for offset in range(2))
    moments = (moment_shown(day, fold=fold) for day in days for fold in (0, 1))
    return min(moment for moment in moments if moment > now)


def end_of_work(begin: datetime, seconds: float, hours: OpeningHours | None) -> datetime:
    """When so many seconds of work are done that begin at ``begin`` and rest outside of ``hours``."""
    moment, left = begin, timedelta(seconds=min(seconds, _LONGEST.total_seconds()))
    while hours is not None:
        change = hours.next_change(moment)
        if change is None or change - begin > _LONGEST:
            break
        if hours.is_open(moment):
            if moment + left <= change:
                break
            left -= change - moment
        moment = change
    return moment + left


def working_seconds(begin: datetime, end: datetime, hours: OpeningHours | None) -> float:
    """Seconds between two times that lie within ``hours``."""
    seconds, moment = 0.0, begin
    if hours is not None and end - begin > _COUNTED:
        return working_seconds(begin, begin + _COUNTED, hours) * ((end - begin) / _COUNTED)
    while hours is not None and moment < end:
        change = hours.next_change(moment)
        until = end if change is None else min(change, end)
        if hours.is_open(moment):
            seconds += (until - moment).total_seconds()
        moment = until
    return max(0.0, (end - begin).total_seconds()) if hours is None else seconds
