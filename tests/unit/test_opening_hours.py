"""Opening hours by the clock on the wall, through the changes of summer time."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.errors import ConfigurationError
from helix_jobs.opening_hours import OpeningHours, checked_opening_hours

BERLIN = ZoneInfo("Europe/Berlin")
# 2026 in Berlin: on 29 March the clock goes from 02:00 to 03:00, on 25 October from 03:00 back to 02:00.


def at(text, fold=0):
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).astimezone(UTC)


def hours(text):
    return OpeningHours.parse(f"{text} Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "opens", "closed"),
    [
        ("22:00-07:00", "2026-11-30 22:00", "2026-11-30 21:59"),
        ("22:00-07:00", "2026-11-30 06:59", "2026-11-30 07:00"),
        ("9:00 - 17:30", "2026-11-30 17:29", "2026-11-30 08:59"),
        ("00:00-24:00", "2026-11-30 00:00", None),
        ("fri 22:00-07:00", "2026-12-05 06:59", "2026-12-04 06:59"),  # Friday's night ends on Saturday
        ("sat-mon 10:00-11:00", "2026-11-29 10:00", "2026-12-01 10:00"),  # over the end of the week
        ("MON-FRI 22:00-07:00, sat-sun 00:00-24:00", "2026-11-28 12:00", "2026-11-30 12:00"),
        ("mon 23:00-24:00", "2026-11-30 23:59", "2026-12-01 00:00"),
    ],
)
def test_hours_are_open_and_closed(text, opens, closed):
    assert hours(text).is_open(at(opens))
    assert closed is None or not hours(text).is_open(at(closed))


@pytest.mark.parametrize(
    ("text", "moment", "change"),
    [
        ("22:00-07:00", "2026-11-30 12:00", "2026-11-30 22:00"),
        ("22:00-07:00", "2026-11-30 22:00", "2026-12-01 07:00"),
        ("22:00-07:00", "2026-12-01 03:00", "2026-12-01 07:00"),
        ("mon 10:00-11:00", "2026-11-30 11:00", "2026-12-07 10:00"),  # a week later
        ("20:00-23:00, 22:00-02:00", "2026-11-30 21:00", "2026-12-01 02:00"),  # they overlap
        ("mon-fri 00:00-24:00", "2026-11-30 12:00", "2026-12-05 00:00"),  # five days without a pause
        ("00:00-24:00", "2026-11-30 12:00", None),
    ],
)
def test_the_next_change(text, moment, change):
    assert hours(text).next_change(at(moment)) == (None if change is None else at(change))


def test_a_night_is_shorter_in_spring_and_longer_in_autumn():
    night = hours("22:00-07:00")
    assert night.next_change(at("2026-03-28 22:00")) - at("2026-03-28 22:00") == timedelta(hours=8)
    assert night.next_change(at("2026-10-24 22:00")) - at("2026-10-24 22:00") == timedelta(hours=10)


def test_a_time_that_the_clock_leaves_out_is_the_first_after_it():
    assert hours("22:00-02:30").next_change(at("2026-03-28 23:00")) == at("2026-03-29 03:00")
    assert hours("02:30-05:00").next_change(at("2026-03-29 01:00")) == at("2026-03-29 03:00")
    assert not hours("02:15-02:45").is_open(at("2026-03-29 03:00"))


def test_a_time_that_the_clock_shows_twice_never_makes_a_span_longer():
    """Who needs the device at half past two has it the first time the clock shows that."""
    night = hours("22:00-02:30")
    assert night.next_change(at("2026-10-25 01:00")) == at("2026-10-25 02:30", fold=0)
    assert not night.is_open(at("2026-10-25 02:15", fold=1))
    morning = hours("02:30-05:00")
    assert not morning.is_open(at("2026-10-25 02:45", fold=0))
    assert morning.is_open(at("2026-10-25 02:45", fold=1))


def test_without_a_zone_the_clock_of_this_machine_counts(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        own = OpeningHours.parse("22:00-07:00")
        assert own.is_open(datetime(2026, 12, 1, 3, 0, tzinfo=UTC))  # 22:00 there
        assert not own.is_open(datetime(2026, 12, 1, 2, 59, tzinfo=UTC))
        assert own.is_open(datetime(2026, 7, 1, 2, 0, tzinfo=UTC))  # 22:00 in summer
        assert own.next_change(datetime(2026, 7, 1, 2, 0, tzinfo=UTC)) == datetime(2026, 7, 1, 11, 0, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()


@given(
    minute=st.integers(0, 365 * 1440),
    begin=st.integers(0, 1439),
    length=st.integers(1, 1439),
)
def test_the_next_change_is_the_first(minute, begin, length):
    moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    end = (begin + length) % 1440
    some = hours(f"{begin // 60:02d}:{begin % 60:02d}-{end // 60:02d}:{end % 60:02d}")
    change = some.next_change(moment)
    assert change is not None
    assert some.is_open(change) != some.is_open(moment) == some.is_open(change - timedelta(minutes=1))
    between = moment + (change - moment) / 2
    assert some.is_open(between) == some.is_open(moment)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "''"),
        ("22-07", "'22-07'"),
        ("22:00", "'22:00'"),
        ("22:00-22:00", "'22:00-22:00'"),
        ("24:00-07:00", "'24:00-07:00'"),
        ("22:60-07:00", "'22:60'"),
        ("25:00-26:00", "'25:00'"),
        ("day 22:00-07:00", "'day 22:00-07:00'"),
        ("mon,tue 22:00-07:00", "'mon'"),
        ("22:00-07:00 Europe/Nowhere", "time zone 'Europe/Nowhere'"),
        ("22:00-07:00 Europe", "time zone 'Europe'"),
    ],
)
def test_what_is_no_hours_is_refused_by_name(text, named):
    with pytest.raises(ConfigurationError, match="HELIX_HOURS") as caught:
        checked_opening_hours(text)
    assert named in str(caught.value)
