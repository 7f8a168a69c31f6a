from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.engine.speculation.depth.acceptance import RunningAcceptance


def new(horizon=10_000, prior_rate=0.5, prior_trials=1.0):
    return RunningAcceptance(horizon, prior_rate, prior_trials)


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_the_estimate_is_the_same_at_every_depth(depth):
    # accepted / drafted would be 0.7 at depth 1 and 0.28 at depth 8.
    rng = random.Random(3)
    acceptance = new()
    for _ in range(3000):
        accepted = 0
        while accepted < depth and rng.random() < 0.7:
            accepted += 1
        acceptance.observe(depth, accepted)
    assert acceptance.rate == pytest.approx(0.7, abs=0.03)


def test_only_judged_tokens_are_trials():
    acceptance = new(horizon=1e12, prior_trials=0.0)
    acceptance.observe(5, 2)  # two right, the third wrong, two never judged
    assert acceptance.trials == pytest.approx(3)
    assert acceptance.rate == pytest.approx(2 / 3)
    acceptance.observe(3, 3)
    assert acceptance.trials == pytest.approx(6)
    acceptance.observe(0, 0)
    assert acceptance.trials == pytest.approx(6)


def test_the_prior_holds_until_there_are_trials():
    acceptance = new(prior_rate=0.7, prior_trials=4)
    assert acceptance.rate == pytest.approx(0.7)
    acceptance.observe(4, 4)
    assert 0.7 < acceptance.rate < 1


def test_old_trials_lose_their_weight():
    acceptance = new(horizon=20)
    for _ in range(200):
        acceptance.observe(1, 0)
    for _ in range(60):
        acceptance.observe(1, 1)
    assert acceptance.rate > 0.9


def test_fading_keeps_the_rate_and_lets_new_trials_count():
    acceptance, stubborn = new(horizon=500), new(horizon=500)
    for _ in range(500):
        acceptance.observe(1, 0)
        stubborn.observe(1, 0)
    before = acceptance.rate
    acceptance.fade(10)
    assert acceptance.rate == pytest.approx(before, abs=0.01)
    acceptance.observe(8, 8)
    stubborn.observe(8, 8)
    assert acceptance.rate > 3 * stubborn.rate
    acceptance.fade(1000)
    assert acceptance.trials < 20


def test_a_sequence_without_weight_is_judged_as_all_are():
    acceptance = new(prior_trials=4)
    acceptance.observe(4, 0)
    assert acceptance.rate_towards(0.9, weight=0.0) == pytest.approx(0.9)
    assert acceptance.rate_towards(0.9, weight=1.0) < 0.9


@given(st.lists(st.tuples(st.integers(0, 16), st.integers(0, 20), st.booleans())), st.floats(0, 1))
def test_a_rate_is_a_probability(observations, prior):
    acceptance = RunningAcceptance(48, prior, 4)
    for drafted, accepted, fades in observations:
        acceptance.observe(drafted, accepted)
        if fades:
            acceptance.fade(5)
        assert -1e-9 <= acceptance.rate <= 1 + 1e-9
