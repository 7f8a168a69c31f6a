from __future__ import annotations

import json
import logging
import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.engine.speculation.depth.costs import CostCurve, CostProfile, StepCosts

IDENTITY = {"device": "cpu", "target": "demo", "threads": "2"}
FLAT_THEN_LINEAR = {1: 0.010, 8: 0.010, 16: 0.012, 64: 0.030}


def costs(target=None, draft=None, **more):
    return StepCosts(CostProfile.from_measurements(target or FLAT_THEN_LINEAR, draft, **more))


def test_a_curve_is_straight_between_points_flat_before_and_goes_on_after():
    known = costs()
    assert [known.target_seconds(tokens) for tokens in (0, 1, 4, 8, 12, 64)] == pytest.approx(
        [0.0, 0.010, 0.010, 0.010, 0.011, 0.030]
    )
    assert known.target_seconds(128) == pytest.approx(0.060)
    assert known.target_seconds(100_000) == pytest.approx(100_000 / 64 * 0.030)
    assert costs({4: 0.01}).target_seconds(2) == pytest.approx(0.01)


def test_one_point_alone_is_taken_as_proportional():
    assert costs({2: 0.01}).target_seconds(6) == pytest.approx(0.03)


def test_sequences_add_their_share():
    known = costs(sequence_seconds=0.001)
    assert known.target_seconds(8, 4) == pytest.approx(0.014)


def test_points_that_fall_are_levelled():
    curve = CostCurve([(1, 3.0), (2, 1.0), (4, 2.0), (8, 5.0)])
    assert [curve.seconds(tokens) for tokens in (1, 2, 4, 8)] == pytest.approx([2.0, 2.0, 2.0, 5.0])


def test_a_point_in_use_is_not_outvoted_by_points_that_are_not():
    known = costs(draft={1: 0.002, 2: 0.002, 4: 0.002, 8: 0.002, 16: 0.002, 32: 0.002})
    for _ in range(200):
        known.observe_draft([2, 2, 2], 3 * 0.008)
    assert known.draft_seconds(2) == pytest.approx(0.008, rel=0.1)
    assert known.draft_seconds(8) == pytest.approx(0.008, rel=0.1)  # more tokens never cost less


DRAFT = {1: 0.002, 16: 0.002, 64: 0.004}


def together(known, seconds, passes=(8, 4, 4, 4), tokens=20):
    """Expected seconds of a step, before it took so many."""
    expected = known.target_seconds(tokens) + sum(map(known.draft_seconds, passes))
    known.observe_together(tokens, passes, seconds)
    return expected


def test_steps_as_expected_change_neither_curve():
    known = costs(draft=DRAFT)
    target, draft = known.target_seconds(20), known.draft_seconds(4)
    for _ in range(100):
        together(known, target + sum(map(known.draft_seconds, (8, 4, 4, 4))))
    assert known.target_seconds(20) == pytest.approx(target, rel=1e-3)
    assert known.draft_seconds(4) == pytest.approx(draft, rel=1e-3)
    assert known.draft_seconds_spent == pytest.approx(100 * 4 * draft, rel=1e-3)


@pytest.mark.parametrize("factor", [0.5, 2.0, 4.0])
def test_the_sum_of_steps_that_await_their_drafts_becomes_right(factor):
    known = costs(draft=DRAFT)
    actual = factor * (known.target_seconds(20) + sum(map(known.draft_seconds, (8, 4, 4, 4))))
    for _ in range(200):
        together(known, actual)
    assert together(known, actual) == pytest.approx(actual, rel=0.1)


def test_steps_without_drafts_tell_the_parts_apart():
    known = costs(draft=DRAFT)
    for _ in range(400):  # the target takes as long as was measured, the draft three times as long
        together(known, 0.0134 + 4 * 0.006)
        known.observe_target(20, 0.0134)
    assert known.target_seconds(20) == pytest.approx(0.0134, rel=0.25)
    assert known.draft_seconds(4) == pytest.approx(0.006, rel=0.25)


@given(
    st.dictionaries(st.integers(1, 2000), st.floats(1e-5, 10), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(1, 4000), st.floats(1e-6, 100))),
)
def test_whatever_is_observed_more_tokens_never_cost_less(points, observations):
    known = costs(points)
    for tokens, seconds in observations:
        known.observe_target(tokens, seconds)
    figures = [known.target_seconds(tokens) for tokens in range(1, 2100, 37)]
    assert all(math.isfinite(figure) and figure > 0 for figure in figures)
    assert all(after >= before * (1 - 1e-9) for before, after in pairwise(figures))


def test_a_slower_machine_is_slower_at_counts_it_has_not_seen():
    known = costs(draft={1: 0.002, 64: 0.004})
    before = known.target_seconds(64) / known.target_seconds(4), known.draft_seconds(4) / known.target_seconds(4)
    for _ in range(100):
        known.observe_target(4, 0.020)
    assert known.target_seconds(4) == pytest.approx(0.020, rel=0.02)
    after = known.target_seconds(64) / known.target_seconds(4), known.draft_seconds(4) / known.target_seconds(4)
    assert after == pytest.approx(before, rel=0.35)
    assert known.target_seconds(64) > 1.3 * 0.030


def test_a_point_that_was_measured_wrong_is_put_right():
    known = costs({1: 0.010, 8: 0.010})
    for _ in range(150):
        known.observe_target(1, 0.010)
        known.observe_target(8, 0.020)
    assert known.target_seconds(8) / known.target_seconds(1) == pytest.approx(2.0, rel=0.1)


def test_a_wrong_belief_about_a_point_that_is_not_used_fades():
    known = costs({1: 0.010, 8: 0.010})
    for _ in range(60):
        known.observe_target(1, 0.010)
        known.observe_target(8, 0.030)
    believed = known.target_seconds(8) / known.target_seconds(1)
    for _ in range(3000):
        known.observe_target(1, 0.010)
    assert known.target_seconds(8) / known.target_seconds(1) < 1 + (believed - 1) / 3


def test_one_outlier_hardly_counts():
    known = costs(draft={1: 0.002, 8: 0.002})
    for seconds in (5.0, 1e-9):
        relation = known.target_seconds(8) / known.draft_seconds(8)
        known.observe_target(8, seconds)
        assert known.target_seconds(8) / known.draft_seconds(8) == pytest.approx(relation, rel=0.03)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_impossible_times_are_ignored(seconds):
    known = costs(draft={1: 0.002})
    before = known.profile()
    known.observe_target(4, seconds)
    known.observe_draft([4], seconds)
    assert known.profile() == before


def test_draft_passes_are_learnt_from_their_sum():
    known = costs(draft={1: 0.002, 8: 0.002, 64: 0.010})
    for _ in range(100):
        known.observe_draft([64, 8, 8, 8], 2 * (0.010 + 3 * 0.002))
    assert known.draft_seconds(64) + 3 * known.draft_seconds(8) == pytest.approx(0.032, rel=0.05)
    for _ in range(100):
        known.observe_draft([64, 8, 8, 8], 2 * (0.010 + 3 * 0.002))
        known.observe_draft([8, 8, 8, 8], 2 * 4 * 0.002)
    assert known.draft_seconds(8) == pytest.approx(0.004, rel=0.1)
    assert known.draft_seconds(64) == pytest.approx(0.020, rel=0.1)


def test_the_pass_that_makes_up_most_of_the_time_is_the_one_that_is_put_right():
    # Nothing was measured past 16 tokens; catching up on 300 is far from proportional in truth.
    known = costs(draft={1: 0.002, 16: 0.002})
    assert known.draft_seconds(300) == pytest.approx(300 / 16 * 0.002)
    for _ in range(120):
        known.observe_draft([300, 1, 1], 0.010 + 2 * 0.002)
        known.observe_draft([1, 1, 1], 3 * 0.002)
    assert known.draft_seconds(300) == pytest.approx(0.010, rel=0.25)
    assert known.draft_seconds(1) == pytest.approx(0.002, rel=0.1)


def test_without_a_draft_model_its_passes_say_nothing():
    known = costs()
    known.observe_draft([4], 1.0)
    assert not known.has_draft
    assert known.profile().draft == ()


def test_no_passes_say_nothing():
    known = costs(draft={1: 0.002})
    known.observe_draft([], 0.5)
    assert known.draft_seconds(1) == pytest.approx(0.002)


def test_noisy_steps_settle_at_their_middle():
    rng = random.Random(0)
    known = costs({1: 0.010, 16: 0.010})
    for _ in range(400):
        known.observe_target(1, 0.010 * math.exp(rng.gauss(0, 0.2)))
        known.observe_target(16, 0.014 * math.exp(rng.gauss(0, 0.2)))
    assert known.target_seconds(16) / known.target_seconds(1) == pytest.approx(1.4, rel=0.12)


def test_a_profile_survives_its_file():
    known = costs(draft={1: 0.002, 8: 0.003}, sequence_seconds=0.0001)
    known.observe_target(8, 0.011)
    profile = known.profile()
    assert CostProfile.from_dict(json.loads(json.dumps(profile.to_dict(IDENTITY))), IDENTITY) == profile


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"version": 3},
        {"target": []},
        {"target": None},
        {"target": [[1]]},
        {"target": [[1, "fast"]]},
        {"target": [[1, True]]},
        {"target": [[1.5, 0.1]]},
        {"target": [[0, 0.1]]},
        {"target": [[1, 0.0]]},
        {"target": [[1, float("nan")]]},
        {"target": [[1, 10**400]]},
        {"target": [[8, 0.1], [4, 0.1]]},
        {"target": [[4, 0.1], [4, 0.1]]},
        {"draft": [[4, -0.1]]},
        {"draft": {"4": 0.1}},
        {"sequence_seconds": -1},
        {"sequence_seconds": "0"},
    ],
)
def test_a_damaged_file_is_ignored_and_said_so(change, caplog):
    data = costs(draft={1: 0.002}).profile().to_dict(IDENTITY) | change
    with caplog.at_level(logging.INFO):
        assert CostProfile.from_dict(data, IDENTITY) is None
    assert "ignoring" in caplog.text


@pytest.mark.parametrize("data", [None, [], "x", 7, {}])
def test_what_is_no_profile_at_all_is_ignored(data):
    assert CostProfile.from_dict(data, IDENTITY) is None


def test_a_profile_of_another_machine_is_ignored(caplog):
    data = costs().profile().to_dict(IDENTITY)
    with caplog.at_level(logging.INFO):
        assert CostProfile.from_dict(data, IDENTITY | {"threads": "4"}) is None
    assert "another device" in caplog.text


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    )
)
def test_no_file_content_raises(junk):
    data = {"version": 2, "identity": IDENTITY, "target": junk, "draft": junk, "sequence_seconds": junk}
    CostProfile.from_dict(junk, IDENTITY)
    CostProfile.from_dict(data, IDENTITY)


def test_a_profile_needs_a_target():
    with pytest.raises(ValueError, match="at least one target point"):
        CostProfile.from_measurements({})
