"""Forecasts in words: ``done about 06:40 (06:10 to 07:20)``, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.cli.console import timestamp
from helix_jobs.forecast.clock import end_of_work, working_seconds
from helix_jobs.opening_hours import OpeningHours
from helix_jobs.outlook.deadline import MISSED, remedies
from helix_jobs.wording import clock_time, percent

if TYPE_CHECKING:
    from helix_jobs.forecast.forecast import Forecast
    from helix_jobs.outlook.batch_outlook import BatchOutlook
    from helix_jobs.settings import Settings
    from helix_jobs.storage.records import BatchStatus

_NEAR_CERTAIN: Final = 0.99


def done_words(found: Forecast, now: datetime, hours: OpeningHours | None) -> str:
    """``done about 06:40 (06:10 to 07:20)``; eight of ten batches end within such a range."""
    middle, low, high = (
        clock_time(end_of_work(now, seconds, hours), now) for seconds in (found.median, found.low, found.high)
    )
    return f"done about {middle}" if low == high else f"done about {middle} ({low} to {high})"


def probability_by(found: Forecast, now: datetime, by: datetime, hours: OpeningHours | None) -> float:
    """How likely the work is done by a time."""
    return found.probability_within(working_seconds(now, by, hours))


def probability_words(probability: float) -> str:
    """``83 %``; the ends are never certain."""
    if probability > _NEAR_CERTAIN:
        return "more than 99 %"
    return "less than 1 %" if probability < 1 - _NEAR_CERTAIN else percent(probability)


def forecast_json(found: Forecast, now: datetime, hours: OpeningHours | None) -> dict[str, Any]:
    """For programs: seconds of work, and the times at which it is done."""
    quantiles = {"median": found.median, "low": found.low, "high": found.high}
    return {
        "seconds": {name: round(seconds, 3) for name, seconds in quantiles.items()},
        "done_at": {name: timestamp(end_of_work(now, seconds, hours)) for name, seconds in quantiles.items()},
    }


def outlook_words(outlook: BatchOutlook | None, status: BatchStatus, settings: Settings) -> str | None:
    """When a stored batch is done; None where nothing is known. Workers rest outside of HELIX_HOURS."""
    if outlook is None:
        return None
    now, hours = datetime.now(UTC), hours_of(settings)
    words = done_words(outlook.forecast, now, hours)
    if status.deadline is None:
        return words
    likely = probability_words(probability_by(outlook.forecast, now, status.deadline, hours))
    return f"{words}; by {clock_time(status.deadline, now)} {likely} likely"


def slipping_words(outlook: BatchOutlook | None, status: BatchStatus, settings: Settings) -> str | None:
    """A sentence about a deadline that will probably be missed, and what would help; None while it is kept."""
    if outlook is None or status.deadline is None:
        return None
    now, hours = datetime.now(UTC), hours_of(settings)
    seconds = working_seconds(now, status.deadline, hours)
    if outlook.forecast.probability_within(seconds) >= MISSED:
        return None
    helps = remedies(outlook, seconds, is_int8=outlook.is_int8).in_words
    deadline = clock_time(status.deadline, now)
    return f"The deadline {deadline} will probably be missed. What would keep it: {helps}."


def outlook_json(outlook: BatchOutlook | None, status: BatchStatus, settings: Settings) -> dict[str, Any] | None:
    """The same for programs."""
    if outlook is None:
        return None
    now, hours = datetime.now(UTC), hours_of(settings)
    told = {**forecast_json(outlook.forecast, now, hours), "jobs_in_front": outlook.in_front}
    if status.deadline is None:
        return {**told, "by_deadline": None, "would_help": None}
    seconds = working_seconds(now, status.deadline, hours)
    probability = outlook.forecast.probability_within(seconds)
    helps = None if probability >= MISSED else asdict(remedies(outlook, seconds, is_int8=outlook.is_int8))
    return {**told, "by_deadline": round(probability, 3), "would_help": helps}


def hours_of(settings: Settings) -> OpeningHours | None:
    """The hours in which workers work; None for always."""
    return None if settings.hours is None else OpeningHours.parse(settings.hours)
