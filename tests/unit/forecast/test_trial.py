"""The trial over the fake engine, the prefix cache's savings, and times as a person writes them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from helix_jobs.engine.fake_engine import FakeEngine
from helix_jobs.engine.fake_faults import FakeFaults
from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import EngineError, InputError
from helix_jobs.forecast.clock import end_of_work, read_moment, working_seconds
from helix_jobs.forecast.prefix_savings import PrefixSavings
from helix_jobs.forecast.rate_model import RateModel
from helix_jobs.forecast.trial import run_trial
from helix_jobs.opening_hours import OpeningHours
from tests.machine_clock import machine_clock

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)


def requests(engine: FakeEngine, *texts: str, **params):
    return [
        engine.encode(Request(request_id=str(number), prompt=text, seed=1, sampling_params=SamplingParams(**params)))
        for number, text in enumerate(texts)
    ]


def test_a_trial_tells_lengths_and_costs():
    engine = FakeEngine(max_batch_size=4, depth=0, step_seconds=0.001)
    made = requests(engine, *("word " * (1 + number) for number in range(12)), max_tokens=8)
    trial = run_trial(engine, made, {one.request_id: 8 for one in made}, most_seconds=60)
    assert [trial.ended[str(number)] for number in range(12)] == [(min(number + 1, 8),) for number in range(12)]
    assert sum(one.ended for one in trial.answers) == 8  # the words of a longer prompt do not fit
    assert (trial.failed, trial.was_cut) == (0, False)
    rate = RateModel.of(trial.stretches)
    assert rate is not None
    assert rate.at(4) >= 0.001


def test_what_is_under_way_when_time_is_up_is_known_to_be_longer():
    seconds = iter(range(1000))
    engine = FakeEngine(max_batch_size=4, depth=0)
    made = requests(engine, "a b", "word " * 500, max_tokens=400)
    trial = run_trial(
        engine, made, {one.request_id: 400 for one in made}, most_seconds=5, clock=lambda: float(next(seconds))
    )
    assert trial.was_cut
    assert trial.ended == {"0": (2,)}
    assert {(one.tokens < 20, one.ended) for one in trial.answers} == {(True, True), (True, False)}


def test_a_trial_in_which_nothing_can_be_answered_says_why():
    engine = FakeEngine(faults=FakeFaults(fail="poison"))
    with pytest.raises(EngineError, match="no request of the trial could be answered; the first ended with"):
        run_trial(engine, requests(engine, "poison", "more poison"), {"0": 9, "1": 9}, most_seconds=5)


def test_prompts_that_begin_alike_share_whole_blocks():
    savings = PrefixSavings(4, 100)
    assert savings.add(range(10)) == 0
    assert savings.add([*range(8), 99, 98]) == 8
    assert savings.add(range(8)) == 4  # the last token is always computed
    assert savings.add(range(10), adapter="legal") == 0


def test_a_small_cache_forgets():
    savings = PrefixSavings(4, 2)
    savings.add(range(9))
    savings.add(range(100, 109))
    assert savings.add(range(9)) == 0


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-12-01T07:00+00:00", datetime(2026, 12, 1, 7, tzinfo=UTC)),
        ("2026-12-01T07:00:30+02:00", datetime(2026, 12, 1, 5, 0, 30, tzinfo=UTC)),
    ],
)
def test_times_with_a_day(text, moment):
    assert read_moment(text, NOW, option="--by") == moment


def test_a_time_of_day_is_the_next_one():
    local = NOW.astimezone()
    soon = read_moment(f"{local + timedelta(minutes=1):%H:%M}", NOW, option="--by")
    assert soon == NOW + timedelta(minutes=1)
    assert NOW < read_moment(f"{local:%H:%M}", NOW, option="--by") <= NOW + timedelta(hours=25)


@pytest.mark.parametrize(
    ("now", "text", "moment"),
    [
        ("2026-10-25T02:30+02:00", "02:45", "2026-10-25T02:45+02:00"),
        ("2026-10-25T02:30+02:00", "02:15", "2026-10-25T02:15+01:00"),  # shown again before the next day
        ("2026-10-25T02:30+01:00", "02:45", "2026-10-25T02:45+01:00"),  # and not an hour ago
        ("2026-10-25T02:30+01:00", "02:30", "2026-10-26T02:30+01:00"),
        ("2026-03-28T21:00+01:00", "02:30", "2026-03-29T03:00+02:00"),  # which the clock leaves out
        ("2026-03-29T01:45+01:00", "02:30", "2026-03-29T03:00+02:00"),
    ],
)
def test_a_time_of_day_lies_ahead_when_summer_time_moves_the_clock(now, text, moment):
    with machine_clock("Europe/Berlin"):
        found = read_moment(text, datetime.fromisoformat(now).astimezone(UTC), option="--by")
    assert found == datetime.fromisoformat(moment)


def test_a_time_in_a_thousand_years_is_no_thousand_years_of_counting():
    hours = OpeningHours.parse("22:00-07:00 Europe/Berlin")
    began = time.perf_counter()
    late = datetime(9999, 12, 31, tzinfo=UTC)
    share = working_seconds(NOW, late, hours) / (late - NOW).total_seconds()
    assert share == pytest.approx(9 / 24, rel=0.01)
    assert time.perf_counter() - began < 20


def test_times_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="--by '2026-11-30T11:59\\+00:00' lies in the past"):
        read_moment("2026-11-30T11:59+00:00", NOW, option="--by")
    with pytest.raises(InputError, match="'7 am' is no time; give one such as 07:00"):
        read_moment("7 am", NOW, option="--by")


@pytest.mark.thorough
def test_work_rests_when_it_is_closed():
    hours = OpeningHours.parse("22:00-07:00 UTC")
    assert end_of_work(NOW, 3600, None) == NOW + timedelta(hours=1)
    assert end_of_work(NOW, 3600, hours) == datetime(2026, 11, 30, 23, 0, tzinfo=UTC)
    assert end_of_work(NOW, 10 * 3600, hours) == datetime(2026, 12, 1, 23, 0, tzinfo=UTC)
    assert working_seconds(NOW, datetime(2026, 12, 1, 12, 0, tzinfo=UTC), hours) == 9 * 3600
    assert working_seconds(NOW, NOW + timedelta(hours=1), None) == 3600
    assert working_seconds(NOW, NOW - timedelta(hours=1), None) == 0
    assert end_of_work(NOW, 1e12, hours) > NOW + timedelta(days=3000)
