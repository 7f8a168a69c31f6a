"""Lengths, rates, step costs, the simulation and the thinning, each alone."""

from __future__ import annotations

from random import Random
from statistics import fmean

import pytest

from helix_jobs.engine.protocol import EngineCounters
from helix_jobs.forecast.length_model import Answer, LengthModel
from helix_jobs.forecast.rate_model import RateModel
from helix_jobs.forecast.simulation import simulate
from helix_jobs.forecast.step_costs import StepCosts
from helix_jobs.forecast.work import Thinned
from tests.unit.forecast.made_up_engine import PROMPT_SECONDS, MadeUpEngine, made_up_jobs, seen


def drawn(model: LengthModel, limit: int, prompt: int = 10, beyond: int = 0) -> list[int]:
    rng = Random(1)
    return [model.draw(rng, prompt, limit, beyond) for _ in range(4000)]


def test_lengths_are_drawn_as_they_were_seen_and_never_beyond_the_limit():
    model = LengthModel(seen([(10, tokens, True) for tokens in (5, 10, 15)], 100))
    assert set(drawn(model, 100)) == {5, 10, 15}
    assert max(drawn(model, 12)) == 12


def test_answers_that_were_cut_off_say_only_that_they_are_longer():
    rng = Random(2)
    truths = [1 + int(rng.expovariate(1 / 50)) for _ in range(400)]
    cut = [Answer(10, 40, min(tokens, 40), tokens < 40) for tokens in truths]
    mean = fmean(drawn(LengthModel(cut), 1000))
    assert mean == pytest.approx(fmean(truths), rel=0.15)


def test_answers_that_never_ended_take_as_much_as_they_may():
    assert set(drawn(LengthModel([Answer(10, 20, 20, ended=False)] * 5), 300)) == {300}
    assert set(drawn(LengthModel(()), 300)) == {300}


def test_longer_prompts_and_other_limits_have_lengths_of_their_own():
    short = [Answer(10 + one % 3, 1000, 5, ended=True) for one in range(30)]
    long = [Answer(500 + one % 3, 1000, 50, ended=True) for one in range(30)]
    single = [Answer(10, 1, 1, ended=False) for _ in range(30)]
    model = LengthModel([*short, *long, *single])
    assert set(drawn(model, 1000, prompt=12)) == {5}
    assert set(drawn(model, 1000, prompt=400)) == {50}
    assert set(drawn(model, 1)) == {1}


def test_a_few_answers_of_a_rare_limit_are_joined_with_their_neighbours():
    model = LengthModel([*[Answer(10, 100, 7, ended=True)] * 20, Answer(10, 5000, 9, ended=True)])
    assert set(drawn(model, 5000)) == {7, 9}


def test_the_rate_is_fitted_to_what_steps_of_each_size_took():
    rng = Random(3)
    engine = MadeUpEngine(rng, noise=0.05)
    engine.run([(prompt, tokens) for prompt, tokens, _ in made_up_jobs(rng, 200, 200)])
    rate = RateModel.of(engine.stretches)
    assert rate is not None
    assert rate.at(1) == pytest.approx(0.0045, rel=0.1)
    assert rate.at(8) == pytest.approx(0.008, rel=0.1)
    assert rate.at(16) == pytest.approx(0.012, rel=0.1)
    assert rate.prompt_token_seconds == pytest.approx(PROMPT_SECONDS, rel=0.15)
    assert rate.at(32) > rate.at(16)


def test_a_rate_survives_the_database():
    engine = MadeUpEngine(Random(4))
    engine.run([(50, 20)] * 40)
    stored = [StepCosts.from_json(one.to_json()) for one in engine.stretches]
    before, after = RateModel.of(engine.stretches), RateModel.of(stored)
    assert before is not None
    assert after is not None
    assert after.at(7) == pytest.approx(before.at(7), rel=1e-3)
    assert RateModel.of([StepCosts.from_json({"decoding": [[1]]}), StepCosts.from_json(None)]) is None
    for steps in (0, float("inf")):
        changed = {"decoding": [[1, steps, 5, 1.0, 5, 0]]}
        assert RateModel.of([StepCosts.from_json(changed)]) is None, "somebody changed it by hand"


def test_prompts_without_answers_have_a_rate():
    costs = StepCosts()
    costs.add_step(EngineCounters(), EngineCounters(steps=1, sequence_steps=4, prompt_tokens=400), 2.0)
    rate = RateModel.of([costs])
    assert rate is not None
    assert simulate([], [(100, 0)] * 8, rate, 4) == pytest.approx(4.0)


def test_the_rate_between_sizes_lies_on_a_straight_line():
    rate = RateModel({1: 1.0, 5: 3.0}, 0.0, 0.0)
    assert [rate.at(size) for size in (1, 3, 5, 7)] == [1.0, 2.0, 3.0, 4.0]
    assert RateModel.of_slots(10, 2.0).at(10) == 2.0
    assert RateModel.of_slots(10, 2.0).at(1) < 2.0


def test_the_simulation_is_the_engine():
    rng = Random(5)
    jobs = [(prompt, tokens) for prompt, tokens, _ in made_up_jobs(rng, 300, 150)]
    rate = RateModel({size: 0.004 + 0.0005 * size for size in (1, 16)}, PROMPT_SECONDS, 0.0)
    assert simulate([], jobs, rate, 16) == pytest.approx(MadeUpEngine(rng, noise=0.0).run(jobs), rel=0.03)


def test_jobs_under_way_hold_their_slots():
    rate = RateModel({1: 1.0}, 0.0, 0.0)
    assert simulate([10], [(0, 6)], rate, 1) == pytest.approx(15.0)
    assert simulate([10], [], rate, 4) == pytest.approx(10.0)
    assert simulate([], [], rate, 4) == 0.0


def test_of_many_things_every_so_manieth_is_kept():
    thinned: Thinned[int] = Thinned(100)
    for number in range(10_000):
        thinned.add(number)
    assert thinned.count == 10_000
    assert 50 <= len(thinned.items) <= 100
    assert len({b - a for a, b in zip(thinned.items, thinned.items[1:], strict=False)}) == 1
