from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.engine.speculation.drafters.match_calibrator import MatchCalibrator
from helix_jobs.engine.speculation.drafters.ngram_index import MAX_MATCH, MIN_MATCH

RATES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def test_a_lone_occurrence_is_worth_the_rate_of_its_length():
    calibrator = MatchCalibrator(RATES)
    rates = [calibrator.confidence(length, 1, 1) for length in (2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 99)]
    assert rates == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.6, 0.7, 0.7, 0.8, 0.8, 0.9, 0.9, 0.9])


def test_agreement_raises_the_confidence_and_dissent_lowers_it():
    calibrator = MatchCalibrator(RATES)
    lone, both, split, outvoted = (calibrator.confidence(4, *v) for v in ((1, 1), (2, 2), (1, 2), (2, 5)))
    assert both > lone > outvoted > split


def test_accepted_tokens_lengthen_the_match_for_the_next():
    calibrator = MatchCalibrator(RATES)
    assert calibrator.confidences(2, [(1, 1)] * 4) == pytest.approx((0.3, 0.4, 0.5, 0.6))


def test_nothing_is_learned_behind_the_first_rejection():
    calibrator = MatchCalibrator(RATES)
    before = calibrator.confidences(2, [(1, 1)] * 4)
    calibrator.observe(2, before, 1)
    after = calibrator.confidences(2, [(1, 1)] * 4)
    assert after[0] > before[0]
    assert after[1] < before[1]
    assert after[2:] == before[2:]


def test_nothing_is_learned_from_a_proposal_that_was_not_verified():
    calibrator = MatchCalibrator(RATES)
    calibrator.observe(5, (), 0)
    assert calibrator.confidence(5, 1, 1) == pytest.approx(0.6)


@pytest.mark.parametrize("truth", [0.05, 0.5, 0.95])
def test_the_rate_comes_to_what_is_observed(truth):
    calibrator = MatchCalibrator(RATES)
    draws = random.Random(5)
    total = 0.0
    for step in range(2000):
        total += calibrator.confidence(9, 1, 1) if step >= 1000 else 0.0
        calibrator.observe(9, calibrator.confidences(9, [(1, 1)]), int(draws.random() < truth))
    assert total / 1000 == pytest.approx(truth, abs=0.05)
    assert calibrator.confidence(3, 1, 1) == pytest.approx(0.4)


def test_contested_tokens_do_not_pull_the_rate_when_the_votes_were_right():
    """Two of four agree and the vote is right just as often as predicted: the rate of lone ones need not move far."""
    calibrator = MatchCalibrator(RATES)
    draws = random.Random(6)
    truth = calibrator.confidence(5, 2, 4)
    for _ in range(2000):
        calibrator.observe(5, calibrator.confidences(5, [(2, 4)]), int(draws.random() < truth))
    assert calibrator.confidence(5, 2, 4) == pytest.approx(truth, abs=0.08)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.lists(st.floats(0, 1), max_size=6), st.integers(0, 6)), max_size=300),
    st.integers(MIN_MATCH, MAX_MATCH),
    st.integers(1, 8),
)
def test_confidence_is_always_a_probability(observations, length, num_agreeing):
    calibrator = MatchCalibrator(RATES)
    for match_length, predicted, num_accepted in observations:
        calibrator.observe(match_length, predicted, num_accepted)
    for num_occurrences in range(num_agreeing, 9):
        assert 0 < calibrator.confidence(length, num_agreeing, num_occurrences) < 1
