"""``helix yield`` leaves a note that names the device as workers do, and says until when."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from helix_jobs.cli import yielding
from helix_jobs.worker.device_lock import DeviceLock
from helix_jobs.worker.rest_note import RestNote, Wish, read_rest_notes
from tests.machine_clock import machine_clock


@pytest.mark.parametrize(
    ("given", "noted"),
    [
        ("CUDA:0", "cuda:0"),
        ("rocm", "cuda"),
        ("directml:1", "privateuseone:1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000"),
    ],
)
def test_a_device_is_noted_under_the_name_by_which_workers_lock_it(helix, locks, given, noted):
    result = helix("yield", "--device", given)
    assert result.exit_code == 0, result.output
    assert f"{given} is free. Take it back with" in result.output
    assert read_rest_notes(locks, Wish.YIELD) == (RestNote(device=noted),)
    worker = DeviceLock(f"{noted}:0" if noted == "cuda" else noted, locks)
    worker.acquire()
    result = helix("yield", "--device", given, "--no-wait", "--json")
    assert json.loads(result.output) == {"device": noted, "until": None, "free": False}
    worker.release()


@pytest.mark.parametrize("name", ["cdua", "cuda:x", "auto", "cpu:1", "http://", "ftp://host"])
def test_a_name_that_no_device_has_is_refused_and_nothing_is_noted(helix, locks, name):
    result = helix("yield", "--device", name)
    assert result.exit_code == 2
    assert read_rest_notes(locks, Wish.YIELD) == ()


@pytest.mark.parametrize(
    "case",
    [
        ("2026-10-25T02:30+02:00", "02:15", "2026-10-25T02:15+01:00"),  # shown again before the next day
        ("2026-03-29T01:45+01:00", "02:30", "2026-03-29T03:00+02:00"),  # which the clock leaves out
    ],
)
def test_a_time_of_day_is_the_next_one_when_summer_time_moves_the_clock(helix, locks, monkeypatch, case):
    now, text, until = case

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.fromisoformat(now).astimezone(tz)

    monkeypatch.setattr(yielding, "datetime", Clock)
    with machine_clock("Europe/Berlin"):
        assert helix("yield", "--until", text, "--no-wait").exit_code == 0
    assert read_rest_notes(locks, Wish.YIELD) == (RestNote(until=datetime.fromisoformat(until)),)


def test_the_day_is_said_where_it_is_not_today(helix, locks):
    result = helix("yield", "--for", "3d")
    day = (datetime.now(UTC) + timedelta(days=3)).astimezone()
    assert f"The device is free until {day:%a %Y-%m-%d} " in result.output
