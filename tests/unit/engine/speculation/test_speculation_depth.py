from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.engine.speculation.depth.controller import (
    CATCH_UP_TOKENS,
    EXPLORATION_SHARE,
    DepthController,
    DraftCandidate,
)
from tests.unit.engine.speculation.decode_simulation import MAX_DEPTH, Job, World, line, measured, run

# A step costs the same up to 16 tokens, and nearly all of its cost is reading the weights.
MEMORY_BOUND = line(0.002, 16, 0.001)
COMPUTE_BOUND = line(0.0, 1, 0.001)
CHEAP_DRAFT = line(0.0005, 16, 0.00005)


def controller_of(target=MEMORY_BOUND, draft=CHEAP_DRAFT, *, acceptance=0.8, trials=200, **more):
    """Trials: so often was a token drafted before, with this acceptance."""
    known = measured(target, draft)
    controller = DepthController(known, **{"max_depth": MAX_DEPTH, "can_compute": draft is not None} | more)
    for trial in range(trials):
        controller.observe_acceptance(f"before-{trial}", 1, int(trial % 10 < round(10 * acceptance)))
        controller.forget(f"before-{trial}")
    for _ in range(50):
        controller.observe_output(200)
    return controller


def batch(size, **fields):
    return [DraftCandidate(**{"ceiling": MAX_DEPTH, "remaining_tokens": 200} | fields) for _ in range(size)]


def jobs_of(count, *, seed=5, output=(20, 128), prompt=(20, 300)):
    rng = random.Random(seed)
    return [Job(rng.randint(*prompt), rng.randint(*output)) for _ in range(count)]


def learning(world, **more):
    """A controller whose profile is true and that knows nothing else."""
    return DepthController(measured(world.target, world.draft), max_depth=MAX_DEPTH, can_compute=True, **more)


def test_deep_where_a_step_is_memory_bound():
    decision = controller_of().choose(batch(1))
    # By hand: at 5 to 8 tokens the step gives 2.7 times as many tokens a second, at fewer or more it gives less.
    assert 5 <= decision.computed_depths[0] <= 8
    assert decision.found_depths == (0,)
    assert decision.reason == "pays"


def test_better_acceptance_never_drafts_less():
    depths = [controller_of(acceptance=rate / 10).choose(batch(1)).computed_depths[0] for rate in range(11)]
    assert depths == sorted(depths)
    assert depths[0] == 0
    assert depths[10] == MAX_DEPTH


def test_off_where_a_step_is_compute_bound():
    decision = controller_of(COMPUTE_BOUND, acceptance=1.0).choose(batch(4))
    assert decision.computed_depths == decision.found_depths == (0, 0, 0, 0)
    assert decision.reason == "off:cost"


def test_off_in_a_full_batch_and_on_in_its_tail():
    controller = controller_of(line(0.002, 16, 0.001), line(0.004, 16, 0.0002))
    assert not any(controller.choose(batch(64)).computed_depths)
    assert not any(controller.choose(batch(64)).computed_depths)
    assert all(controller.choose(batch(3)).computed_depths)


def test_off_at_poor_acceptance():
    decision = controller_of(draft=line(0.005, 16, 0.0), acceptance=0.2).choose(batch(1))
    assert decision.computed_depths == (0,)
    assert decision.reason == "off:acceptance"


def test_each_sequence_by_its_own_acceptance():
    candidates = [DraftCandidate(8, acceptance=rate, remaining_tokens=200) for rate in (0.95, 0.02, 0.95, None)]
    depths = controller_of(line(0.010, 1, 0.001), acceptance=0.5).choose(candidates).computed_depths
    assert depths[0] == depths[2] > depths[3]
    assert depths[1] == 0


def test_a_long_match_is_taken_from_lookup():
    decision = controller_of().choose(batch(1, confidence=(0.99,) * 8))
    assert decision.computed_depths == (0,)
    assert decision.found_depths == (8,)
    assert decision.reason == "pays"


def test_lookup_works_without_a_model():
    controller = controller_of(draft=None)
    decision = controller.choose([*batch(1, confidence=(0.9, 0.9)), *batch(1)])
    assert decision.found_depths == (2, 0)
    assert decision.reason == "pays"
    assert controller.choose(batch(2)).reason == "off:nothing"


def test_lookup_and_model_side_by_side():
    decision = controller_of().choose([*batch(1, confidence=(0.99,) * 4), *batch(1)])
    assert decision.found_depths[0] == 4
    assert decision.computed_depths[0] == 0
    assert decision.computed_depths[1] > 0
    assert decision.reason == "pays"


def test_ceilings_hold_and_nothing_is_drafted_where_nothing_may():
    controller = controller_of(acceptance=1.0)
    assert controller.choose([]).reason == "off:nothing"
    assert controller.choose(batch(2, ceiling=0, confidence=(1.0,))).reason == "off:nothing"
    candidates = [*batch(1, ceiling=0, confidence=(1.0,)), *batch(1, ceiling=2), *batch(1)]
    decision = controller.choose(candidates)
    assert decision.computed_depths[:2] == (0, 2)
    assert decision.found_depths == (0, 0, 0)


def test_no_depth_without_room_for_one():
    controller = controller_of(max_depth=0)
    assert controller.choose(batch(1)).reason == "off:nothing"


def test_a_prompt_chunk_makes_drafts_no_better():
    # Alone the drafts ride along; beside a chunk that fills the step each costs its full price.
    controller = controller_of(line(0.002, 64, 0.001), line(0.004, 16, 0.0), acceptance=0.5)
    assert any(controller.choose(batch(16)).computed_depths)
    controller = controller_of(line(0.002, 64, 0.001), line(0.030, 16, 0.0), acceptance=0.5)
    assert not any(controller.choose(batch(32), prefill_tokens=512).computed_depths)


def test_the_draft_model_catches_up_only_where_it_earns_that_back():
    def depths(catch_up_tokens, remaining_tokens):
        ceiling = min(MAX_DEPTH, remaining_tokens - 1)
        candidates = batch(1, ceiling=ceiling, catch_up_tokens=catch_up_tokens, remaining_tokens=remaining_tokens)
        return controller_of(draft=line(0.0005, 8, 0.0002)).choose(candidates).computed_depths[0]

    assert depths(400, 200) > 0
    assert depths(400, 2) == 0  # one draft token at most would come of it
    assert depths(1, 2) == 1
    assert depths(100_000, 200) == 0


def test_short_outputs_are_not_worth_a_long_catch_up():
    controller = controller_of(draft=line(0.0005, 8, 0.0002))
    assert any(controller.choose(batch(1, catch_up_tokens=600)).computed_depths)
    for _ in range(200):
        controller.observe_output(5)
    assert not any(controller.choose(batch(1, catch_up_tokens=600)).computed_depths)


def test_catching_up_is_spread_over_steps():
    controller = controller_of(line(0.1, 512, 0.0001), line(0.001, 512, 0.000001))
    candidates = batch(8, catch_up_tokens=CATCH_UP_TOKENS // 3)
    drafting = [depth > 0 for depth in controller.choose(candidates).computed_depths]
    assert sum(drafting) == 3
    alone = controller.choose(batch(1, catch_up_tokens=2 * CATCH_UP_TOKENS))
    assert alone.computed_depths[0] > 0


def test_an_unknown_draft_is_tried_on_few_sequences_first():
    controller = controller_of(line(0.002, 64, 0.001), trials=0)
    decision = controller.choose(batch(16, catch_up_tokens=200))
    assert sum(depth > 0 for depth in decision.computed_depths) == 1
    assert max(decision.computed_depths) <= 4


def test_switching_on_takes_more_than_staying_on():
    # The gain at this acceptance lies between the two margins.
    def controller_at(rate):
        return controller_of(line(0.010, 64, 0.0), line(0.0061, 64, 0.0), acceptance=0.0, trials=0), rate

    controller, rate = controller_at(0.648)
    edge = batch(1, acceptance=rate)
    assert not any(controller.choose(edge).computed_depths)
    controller, _ = controller_at(rate)
    assert any(controller.choose(batch(1, acceptance=0.9)).computed_depths)
    assert any(controller.choose(edge).computed_depths)
    assert not any(controller.choose(batch(1, acceptance=0.5)).computed_depths)


def test_a_sequence_is_known_by_its_record_until_it_ends():
    controller = controller_of(acceptance=0.5)
    assert controller.acceptance_of("a") is None
    controller.observe_acceptance("a", 0, 0)
    assert controller.acceptance_of("a") is None
    for _ in range(10):
        controller.observe_acceptance("a", 4, 4)
    assert controller.acceptance_of("a") > 0.85
    for _ in range(1000):
        controller.choose(batch(1, ceiling=0))
    assert controller.acceptance_of("a") == pytest.approx(0.53, abs=0.08)  # an old record says little
    controller.forget("a")
    controller.forget("never seen")
    assert controller.acceptance_of("a") is None


def test_the_same_history_leads_to_the_same_depths():
    world = World(MEMORY_BOUND, line(0.003, 16, 0.0002), lambda _step: 0.6, noise=0.1)
    first, second = (run(world, jobs_of(20), 4, learning(world)) for _ in range(2))
    assert first == second


def test_the_reasons_say_why_depths_were_chosen():
    controller = controller_of()
    offered = [[], batch(2), batch(1, confidence=(0.99,) * 8)]
    assert [controller.choose(one).reason for one in offered] == ["off:nothing", "pays", "pays"]


# In simulated time, against plain decoding and every fixed depth in hindsight.


@st.composite
def worlds(draw):
    per_token = draw(st.sampled_from([0.0003, 0.001, 0.003]))
    flat_until = draw(st.sampled_from([1, 2, 4, 8, 16, 32, 64]))
    target = line(draw(st.sampled_from([0.0, 0.002, 0.01])), flat_until, per_token)
    share = draw(st.sampled_from([0.05, 0.1, 0.2, 0.4, 0.7, 1.0]))
    draft_flat = draw(st.sampled_from([1, 4, 16, 64]))
    draft = line(target(1) * share / 2, draft_flat, per_token * share * flat_until / max(draft_flat, flat_until))
    acceptance = draw(st.floats(0, 1))
    noise = draw(st.sampled_from([0.0, 0.05, 0.15]))
    return World(target, draft, lambda _step: acceptance, noise, draw(st.integers(0, 1000)))


@pytest.mark.thorough
@given(worlds(), st.sampled_from([1, 2, 4, 8, 16]))
@settings(max_examples=25, deadline=None)
def test_never_slower_than_plain_decoding_and_close_to_the_best_fixed_depth(world, slots):
    jobs = jobs_of(max(24, 5 * slots))
    adaptive = run(world, jobs, slots, learning(world)).seconds
    plain = run(world, jobs, slots, 0).seconds
    best = min(plain, *(run(world, jobs, slots, depth).seconds for depth in (1, 2, 4, 8)))
    assert adaptive <= 1.05 * plain
    assert adaptive <= 1.20 * best


def test_what_pays_in_hindsight_is_nearly_reached():
    world = World(MEMORY_BOUND, CHEAP_DRAFT, lambda _step: 0.85)
    adaptive = run(world, jobs_of(20), 1, learning(world)).seconds
    assert adaptive < 0.5 * run(world, jobs_of(20), 1, 0).seconds
    assert adaptive < 1.03 * min(run(world, jobs_of(20), 1, depth).seconds for depth in (1, 2, 3, 4, 5, 6, 7, 8))


def test_the_tail_of_a_batch_speculates():
    # A full batch is compute bound here, the last few sequences are not.
    world = World(line(0.002, 8, 0.001), line(0.0005, 8, 0.0001), lambda _step: 0.8)
    jobs = [Job(50, 30) for _ in range(60)] + [Job(50, 120), Job(50, 120)]
    outcome = run(world, jobs, 62, learning(world))
    assert not any(outcome.drafted[5:15])
    assert all(outcome.drafted[-10:])


def test_exploration_stays_within_its_share():
    world = World(MEMORY_BOUND, line(0.002, 16, 0.0005), lambda _step: 0.0)
    jobs = jobs_of(120, output=(100, 128))
    outcome = run(world, jobs, 2, learning(world))
    plain = run(world, jobs, 2, 0)
    assert outcome.reasons["explore"] > 1
    assert outcome.explored_seconds <= EXPLORATION_SHARE * plain.seconds + 8 * MEMORY_BOUND(2)  # on credit
    assert outcome.seconds <= 1.015 * plain.seconds


def test_where_nothing_could_pay_exploration_stays_within_its_share():
    world = World(COMPUTE_BOUND, CHEAP_DRAFT, lambda _step: 1.0)
    outcome = run(world, jobs_of(400), 8, learning(world))
    assert 0 < outcome.explored_seconds <= EXPLORATION_SHARE * run(world, jobs_of(400), 8, 0).seconds


@pytest.mark.thorough
def test_a_draft_that_is_as_dear_as_it_seems_is_tried_within_the_share():
    world = World(MEMORY_BOUND, line(0.05, 16, 0.0005), lambda _step: 1.0)
    outcome = run(world, jobs_of(400, output=(100, 128)), 2, learning(world))
    plain = run(world, jobs_of(400, output=(100, 128)), 2, 0)
    assert outcome.reasons["explore"] > 1
    assert outcome.seconds <= (1 + EXPLORATION_SHARE) * plain.seconds + 8 * MEMORY_BOUND(2)


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("factor", [2, 6])
def test_a_profile_that_slanders_the_draft_is_found_out(factor):
    true = World(MEMORY_BOUND, line(0.002, 16, 0.0002), lambda _step: 0.9)
    slandering = line(0.002 * factor, 16, 0.0002 * factor)
    controller = DepthController(measured(MEMORY_BOUND, slandering), max_depth=MAX_DEPTH, can_compute=True)
    outcome = run(true, jobs_of(300, output=(100, 128)), 2, controller)
    assert not any(outcome.drafted[10:400])
    assert sum(outcome.drafted[-400:]) > 300


def test_exploration_finds_out_that_acceptance_has_risen():
    world = World(MEMORY_BOUND, line(0.004, 16, 0.0002), lambda step: 0.9 if step > 800 else 0.05)
    outcome = run(world, jobs_of(120, output=(100, 128)), 2, learning(world))
    assert sum(outcome.drafted[100:200]) <= 2
    assert sum(outcome.drafted[-400:]) > 300


def test_it_lets_go_when_acceptance_falls():
    world = World(MEMORY_BOUND, line(0.002, 16, 0.0002), lambda step: 0.9 if step < 200 else 0.05)
    outcome = run(world, jobs_of(60, output=(100, 128)), 2, learning(world))
    assert sum(outcome.drafted[50:200]) > 140
    assert sum(outcome.drafted[300:]) < 0.1 * len(outcome.drafted[300:])


def test_a_profile_that_flatters_the_draft_is_seen_through():
    true = World(MEMORY_BOUND, line(0.014, 16, 0.0002), lambda _step: 0.7)
    flattering = line(0.004, 16, 0.00005)
    controller = DepthController(measured(MEMORY_BOUND, flattering), max_depth=MAX_DEPTH, can_compute=True)
    jobs = jobs_of(60, output=(100, 128))
    assert run(true, jobs, 2, controller).seconds <= 1.05 * run(true, jobs, 2, 0).seconds


def test_an_outlier_does_not_switch_speculation_off_for_good():
    controller = controller_of()
    assert any(controller.choose(batch(1)).computed_depths)
    controller.costs.observe_draft([1, 1, 1, 1], 30.0)
    controller.costs.observe_target(9, 30.0, sequences=1)
    assert any(controller.choose(batch(1)).computed_depths)
