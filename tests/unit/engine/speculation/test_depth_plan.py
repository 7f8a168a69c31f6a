from __future__ import annotations

from itertools import accumulate, product
from math import prod
from operator import mul

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.engine.speculation.depth.plan import (
    ComputedPlanner,
    DraftCandidate,
    StepTimes,
    accepted_tokens,
    can_pay,
    plan_found,
    plan_none,
)
from tests.unit.engine.speculation.decode_simulation import line, measured

MEMORY_BOUND = line(0.010, 32, 0.0005)
CHEAP_DRAFT = line(0.001, 32, 0.00005)


def times_of(num_sequences, *, target=MEMORY_BOUND, draft=CHEAP_DRAFT, prefill=0):
    return StepTimes(measured(target, draft), num_sequences, prefill)


def test_expected_tokens_are_a_geometric_sum():
    assert accepted_tokens(0.5)[3] == pytest.approx(0.5 + 0.25 + 0.125)
    assert accepted_tokens(1.0)[16] == 16
    assert accepted_tokens(-0.1)[4] == 0
    assert accepted_tokens(1.7)[4] == 4


def test_prompt_chunks_move_drafts_along_the_curve_and_make_them_no_cheaper():
    plain, beside = times_of(8), times_of(8, prefill=512)
    assert beside.plain == plain.plain
    assert beside.verify(0) == pytest.approx(plain.plain)
    assert plain.verify(8) == pytest.approx(plain.plain)  # rides along
    assert beside.verify(8) - beside.verify(0) == pytest.approx(8 * 0.0005, rel=0.05)  # costs its full price


def test_lookup_takes_what_is_free_and_drops_what_is_unlikely():
    candidates = [DraftCandidate(8, (0.9,) * 8), DraftCandidate(8), DraftCandidate(2, (0.9,) * 8)]
    assert plan_found(candidates, times_of(3)).found_depths == (8, 0, 2)
    compute_bound = times_of(3, target=line(0.0, 1, 0.001))
    assert plan_found(candidates, compute_bound).found_depths == (0, 0, 0)
    # With a fixed cost beside it, the surest tokens pay and the others do not.
    between = plan_found([DraftCandidate(8, (0.99, 0.99, 0.5, 0.5))], times_of(1, target=line(0.001, 1, 0.001)))
    assert between.found_depths == (2,)


@given(st.lists(st.lists(st.floats(0, 1), max_size=6), min_size=1, max_size=3), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_lookup_is_the_best_of_all_combinations(confidences, flat_until):
    candidates = [DraftCandidate(4, tuple(confidence)) for confidence in confidences]
    times = times_of(len(candidates), target=line(0.002, flat_until, 0.001))
    best = max(
        (len(candidates) + sum(sum(accumulate(c.confidence[:d], mul)) for c, d in zip(candidates, depths, strict=True)))
        / times.verify(sum(depths))
        for depths in product(*(range(min(4, len(c.confidence)) + 1) for c in candidates))
    )
    assert plan_found(candidates, times).goodput == pytest.approx(best)


def candidate_of(ceiling, forced, confidence, catch_up_tokens):
    """Forced tokens stand within the ceiling and are certain."""
    forced = min(forced, ceiling)
    confidence = ((1.0,) * forced + confidence)[:4]
    return DraftCandidate(ceiling, confidence, catch_up_tokens=catch_up_tokens, num_forced=forced)


@st.composite
def batches(draw):
    candidates = draw(
        st.lists(
            st.builds(
                candidate_of,
                ceiling=st.integers(0, 4),
                forced=st.sampled_from([0, 0, 1, 2]),
                confidence=st.lists(st.floats(0.2, 1), max_size=4).map(tuple),
                catch_up_tokens=st.sampled_from([0, 0, 1, 60]),
            ),
            min_size=1,
            max_size=3,
        )
    )
    rates = [draw(st.floats(0, 1)) for _ in candidates]
    per_token = draw(st.sampled_from([0.0003, 0.001]))
    target = line(draw(st.sampled_from([0.0, 0.002, 0.01])), draw(st.sampled_from([1, 4, 16])), per_token)
    share = draw(st.sampled_from([0.05, 0.2, 0.5]))
    draft = line(target(1) * share * 0.6, 1, target(1) * share * 0.4)
    return candidates, rates, times_of(len(candidates), target=target, draft=draft)


@given(batches())
@settings(max_examples=80, deadline=None)
def test_the_model_plan_is_near_the_best_of_all_combinations(batch):
    candidates, rates, times = batch
    base = plan_found(candidates, times)
    planner = ComputedPlanner(candidates, times, rates, [60.0] * len(candidates), base)
    plan = planner.plan(4)
    # Each sequence as in the lookup plan or by the model at any depth.
    best = max(
        planner.evaluate({index: depth for index, depth in enumerate(depths) if depth}).goodput
        for depths in product(*(range(candidate.computed_ceiling + 1) for candidate in candidates))
    )
    assert plan.goodput >= 0.93 * best
    assert plan.goodput >= base.goodput >= plan_none(candidates, times).goodput
    for candidate, model, lookup in zip(candidates, plan.computed_depths, plan.found_depths, strict=True):
        assert model + lookup <= candidate.ceiling
        assert lookup <= len(candidate.confidence)
        assert not model or lookup == candidate.num_forced


def test_a_plan_promises_what_its_depths_say():
    candidates = [DraftCandidate(4), DraftCandidate(4, (0.9, 0.8)), DraftCandidate(4)]
    times = times_of(3)
    base = plan_found(candidates, times)
    plan = ComputedPlanner(candidates, times, [0.9, 0.1, 0.8], [60.0] * 3, base).evaluate({0: 3, 2: 1})
    assert plan.computed_depths == (3, 0, 1)
    assert plan.found_depths == (0, 2, 0)
    expected = 3 + accepted_tokens(0.9)[3] + accepted_tokens(0.8)[1] + 0.9 + prod((0.9, 0.8))
    assert plan.tokens == pytest.approx(expected)
    assert plan.seconds == pytest.approx(times.verify(6) + times.draft(2) + 2 * times.draft(1))


def test_forced_tokens_are_drafted_whatever_they_cost():
    """They are computed sooner or later; a cost that is measured too high must not put them off."""
    candidates = [DraftCandidate(6, (1.0, 1.0, 0.9), num_forced=2), DraftCandidate(4)]
    times = times_of(2, target=line(0.0, 1, 0.001))
    for plan in (plan_none(candidates, times), plan_found(candidates, times)):
        assert plan.found_depths == (2, 0)
        assert (plan.tokens, plan.seconds) == (4.0, times.verify(2))
    assert plan_found(candidates, times_of(2)).found_depths == (3, 0)


def test_a_computed_draft_goes_on_behind_forced_tokens():
    candidates = [DraftCandidate(6, (1.0, 1.0, 0.5), num_forced=2), DraftCandidate(4)]
    times = times_of(2)
    base = plan_found(candidates, times)
    plan = ComputedPlanner(candidates, times, [0.9, 0.8], [60.0] * 2, base).evaluate({0: 4, 1: 1})
    assert plan.computed_depths == (4, 1)
    assert plan.found_depths == (2, 0)
    assert plan.tokens == pytest.approx(2 + 2 + accepted_tokens(0.9)[4] + accepted_tokens(0.8)[1])
    # The first pass computes the forced tokens as well.
    drafting = times.draft(2) + 3 * times.draft(1) + times.catch_up(2)
    assert plan.seconds == pytest.approx(times.verify(7) + drafting)


def test_sequences_with_poor_acceptance_are_left_out():
    candidates = [DraftCandidate(8)] * 4
    times = times_of(4, target=line(0.004, 1, 0.002), draft=line(0.0002, 1, 0.00005))
    planner = ComputedPlanner(candidates, times, [0.95, 0.1, 0.95, 0.6], [60.0] * 4, plan_none(candidates, times))
    depths = planner.plan(8).computed_depths
    assert depths[0] == depths[2] > depths[3]
    assert depths[1] == 0


def test_perfect_acceptance_is_what_can_pay_is_judged_by():
    assert can_pay(4, 4, times_of(4), 1.03)
    assert not can_pay(4, 4, times_of(4, target=line(0.0, 1, 0.001)), 1.03)
    assert not can_pay(4, 4, times_of(4, draft=line(0.1, 1, 0.0)), 1.03)


def test_a_limit_between_the_usual_depths_is_tried_too():
    candidates = [DraftCandidate(7)]
    times = times_of(1)
    planner = ComputedPlanner(candidates, times, [1.0], [60.0], plan_none(candidates, times))
    assert planner.plan(7).computed_depths == (7,)
