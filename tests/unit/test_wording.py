"""How numbers, sizes, shares and spans of time are written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from helix_jobs.forecast.clock import read_moment
from helix_jobs.wording import clock_time, counted, data_size, duration, energy, gigabytes, percent, rate, rough_size
from tests.machine_clock import machine_clock


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (duration(0.04), "0.0 s"),
        (duration(9.96), "10.0 s"),
        (duration(42.4), "42 s"),
        (duration(59.7), "1 min 00 s"),
        (duration(185), "3 min 05 s"),
        (duration(7800), "2 h 10 min"),
        (duration(273_600), "3 d 4 h"),
        (duration(-1), "0.0 s"),
        (percent(0.0), "0 %"),
        (percent(0.714), "71 %"),
        (percent(0.9999), "99 %"),
        (percent(1.0), "100 %"),
        (rate(8.42), "8.4"),
        (rate(1024.4), "1,024"),
        (counted(1, "job"), "1 job"),
        (counted(0, "job"), "0 jobs"),
        (counted(1024, "job"), "1,024 jobs"),
        (counted(2, "batch", "batches"), "2 batches"),
        (data_size(1), "1 byte"),
        (data_size(999), "999 bytes"),
        (data_size(4_900), "4.9 kB"),
        (data_size(1_500_000_000), "1.5 GB"),
        (rough_size(600_000), "1 MB"),
        (rough_size(1_000_000_000), "1.0 GB"),
        (gigabytes(1_234_000_000), "1.23 GB"),
        (energy(1_440), "0.4 Wh"),
        (energy(151_200), "42 Wh"),
        (energy(4_320_000), "1.2 kWh"),
    ],
)
def test_words(found: str, expected: str) -> None:
    assert found == expected


@pytest.mark.parametrize(
    ("hours", "expected"), [(1, "23:30"), (2, "Tue 2026-12-01 00:30"), (-23, "Sun 2026-11-29 23:30")]
)
def test_a_moment_of_another_day_has_its_date(hours: int, expected: str) -> None:
    """By the clock on the wall, whose day is not that of UTC."""
    now = datetime(2026, 11, 30, 22, 30, tzinfo=timezone(timedelta(hours=-2)))
    with machine_clock("Etc/GMT+2"):  # two hours behind UTC
        assert clock_time((now + timedelta(hours=hours)).astimezone(UTC), now) == expected


@pytest.mark.parametrize(
    ("evening", "morning"),
    [("2026-10-24T22:00+02:00", "Sun 2026-10-25 07:00"), ("2026-03-28T22:00+01:00", "Sun 2026-03-29 07:00")],
)
def test_the_morning_after_a_night_of_summer_time_is_told_by_its_own_clock(evening: str, morning: str) -> None:
    with machine_clock("Europe/Berlin"):
        now = datetime.fromisoformat(evening)
        moment = read_moment("07:00", now, option="--by")
        assert clock_time(moment, now.astimezone()) == morning
