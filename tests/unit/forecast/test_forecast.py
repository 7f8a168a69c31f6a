"""The forecast against made-up engines, whose truth is known."""

from __future__ import annotations

from math import exp
from random import Random
from statistics import median

import pytest

from helix_jobs.forecast.forecast import Forecast, forecast
from helix_jobs.forecast.length_model import LengthModel
from helix_jobs.forecast.rate_model import DRIFT, RateModel
from helix_jobs.forecast.work import JobShape, Work
from tests.unit.forecast.made_up_engine import MadeUpEngine, made_up_jobs, seen


def one_batch(seed: int, *, count: int, sampled: int, slots: int, limit: int) -> tuple[Forecast, float]:
    """What is forecast from a sample of a batch, and how long the batch then takes."""
    rng = Random(seed)
    jobs = made_up_jobs(rng, count, limit)
    sample = jobs[:: count // sampled]
    trial = MadeUpEngine(rng, slots)
    trial.run([(prompt, tokens) for prompt, tokens, _ in sample])
    rate = RateModel.of(trial.stretches)
    assert rate is not None
    chosen = {id(job) for job in sample}
    shapes = tuple(JobShape(job[0], job[0], limit, known=job[1] if id(job) in chosen else None) for job in jobs)
    found = forecast(Work((), shapes, count, slots), LengthModel(seen(sample, limit)), rate, seed, most=60)
    truth = MadeUpEngine(rng, slots, slowness=exp(rng.gauss(0.0, DRIFT))).run([(p, tokens) for p, tokens, _ in jobs])
    return found, truth


@pytest.mark.thorough
@pytest.mark.parametrize(("count", "sampled", "slots", "limit"), [(150, 30, 8, 400), (120, 40, 16, 60)])
def test_the_truth_lies_in_the_range_as_often_as_the_range_says(count, sampled, slots, limit):
    batches = [one_batch(seed, count=count, sampled=sampled, slots=slots, limit=limit) for seed in range(200)]
    inside = sum(found.low <= truth <= found.high for found, truth in batches) / len(batches)
    errors = [abs(found.median - truth) / truth for found, truth in batches]
    assert 0.75 <= inside <= 0.9
    assert median(errors) < 0.15


def test_a_batch_of_a_million_jobs_is_the_multiple_of_a_small_one():
    rate = RateModel({1: 0.005, 8: 0.01}, 0.0, 0.0)
    shapes = tuple(JobShape(10, 10, 50) for _ in range(500))
    lengths = LengthModel(())  # every answer has as many tokens as it may
    small = forecast(Work((), shapes, 500, 8), lengths, rate, most=1).median
    large = forecast(Work((), shapes, 1_000_000, 8), lengths, rate, most=1).median
    assert large / small == pytest.approx(2000, rel=0.01)


def test_gusts_blur_a_minute_and_average_out_over_an_hour():
    rate = RateModel({1: 0.1}, 0.0, 0.0)
    lengths = LengthModel(())

    def width(tokens: int) -> float:
        work = Work((JobShape(10, 0, tokens),), (), 0, 1)
        found = forecast(work, lengths, rate, gusts=0.25)
        assert found.median == pytest.approx(tokens / 10, rel=0.02)
        return (found.high - found.low) / found.median

    assert width(100) == pytest.approx(2 * 1.28 * 0.25 / 10**0.5, rel=0.2)  # ten seconds
    assert width(36_000) < 0.02


def test_a_forecast_says_how_likely_a_time_is():
    found = Forecast(tuple(float(second) for second in range(1, 101)))
    assert (found.low, found.median, found.high) == (pytest.approx(10.9), 50.5, pytest.approx(90.1))
    assert found.probability_within(25) == 0.25
    assert found.probability_within(0) == 0
    assert found.probability_within(1000) == 1


def test_running_jobs_are_taken_to_be_longer_than_they_are():
    rate = RateModel({1: 1.0}, 0.0, 0.0)
    lengths = LengthModel(seen([(10, 5, True), *[(10, 20, True)] * 7], 100))
    found = forecast(Work((JobShape(10, 0, 100, done_tokens=8),), (), 0, 1), lengths, rate)
    assert found.median == 12  # the answer of 20 tokens, of which 8 are there
