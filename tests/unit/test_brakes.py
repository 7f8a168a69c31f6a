"""What stops a batch, as pure functions."""

from __future__ import annotations

import pytest

from helix_jobs.brakes import Brakes, Spent, in_words, parse_share
from helix_jobs.errors import InputError


def test_a_brake_stops_at_its_limit_and_says_which():
    brakes = Brakes(max_tokens_total=1000, max_hours=8, stop_if_failing=0.05)
    assert brakes.stop(Spent(tokens=999, ended=100, failed=4, seconds=28_799)) is None
    stops = {
        "max_tokens_total": Spent(tokens=1000),
        "max_hours": Spent(seconds=28_800),
        "stop_if_failing": Spent(ended=100, failed=5),
    }
    for name, spent in stops.items():
        stop = brakes.stop(spent)
        assert stop is not None
        assert stop.brake == name
        assert f"--{name.replace('_', '-')}" in stop.why
    stop = brakes.stop(Spent(ended=1000, failed=64))
    assert stop is not None
    assert stop.why == "64 of 1,000 jobs failed, 6.4 %; the limit is 5 % (--stop-if-failing)"


def test_a_share_of_few_jobs_says_nothing():
    brakes = Brakes(stop_if_failing=0.5)
    assert brakes.stop(Spent(ended=19, failed=19)) is None
    assert brakes.stop(Spent(ended=20, failed=10)) is not None


def test_no_brake_stops_nothing():
    assert Brakes().stop(Spent(tokens=10**12, ended=10**6, failed=10**6, seconds=10**9)) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens_total": 0},
        {"max_tokens_total": True},
        {"max_tokens_total": 1.5},
        {"max_hours": 0},
        {"max_hours": float("nan")},
        {"max_hours": "8"},
        {"stop_if_failing": 0},
        {"stop_if_failing": 5},
    ],
)
def test_a_brake_that_stops_nothing_or_everything_is_refused_by_name(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is .*; give "):
        Brakes(**wrong)


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), (" 0.5 % ", 0.005), ("100%", 1.0)])
def test_a_percentage_is_a_share(text, share):
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["5", "0%", "-1%", "101%", "nan%", "inf%", "%", "five%", ""])
def test_what_is_no_percentage_is_refused(text):
    with pytest.raises(InputError, match="as in 5%"):
        parse_share(text)


def test_stored_brakes_come_back_and_are_told_in_words():
    brakes = Brakes(max_tokens_total=1_000_000, max_hours=8.0, stop_if_failing=0.05)
    assert Brakes.from_mapping({**brakes.to_dict(), "of_a_later_version": 1}) == brakes
    assert Brakes(max_hours=1).to_dict() == {"max_hours": 1}
    assert in_words(brakes.to_dict()) == "1,000,000 tokens, 8 h 00 min, 5 % failing"
    assert in_words({"max_hours": "long"}) == "cannot be read"
