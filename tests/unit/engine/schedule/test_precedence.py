"""Who goes first: higher priorities, urgent requests in place of bulk work, and bulk work never stands still."""

from __future__ import annotations

import pytest

from helix_jobs.bounds import INTERACTIVE_PRIORITY, MAX_PRIORITY
from helix_jobs.engine.config import EngineConfig
from helix_jobs.engine.request import RequestState
from helix_jobs.engine.schedule.admission import MAX_OVERTAKEN
from helix_jobs.engine.schedule.precedence import MAX_DISPLACED
from tests.unit.engine.schedule.scheduling import add, carry_out, make

URGENT = INTERACTIVE_PRIORITY


def names(sequences):
    return [sequence.request_id for sequence in sequences]


def step(scheduler):
    """One step of the engine: ended sequences leave, the others compute."""
    scheduler.drop_finished()
    schedule = scheduler.schedule()
    carry_out(schedule)
    return schedule


def full(**config):
    """A scheduler whose slots bulk sequences fill: a, b, c and so on."""
    scheduler, pool = make(depth=0, **config)
    for name in "abcdefgh"[: config["max_batch_size"]]:
        add(scheduler, pool, name, 6, max_tokens=50)
    step(scheduler)
    return scheduler, pool


def test_waiting_requests_stand_in_the_order_of_their_priority():
    scheduler, pool = make(max_batch_size=1)
    for name, priority in (("a", 0), ("b", 5), ("c", 9), ("d", 5), ("e", 0), ("f", URGENT)):
        add(scheduler, pool, name, 4, priority=priority)
    assert names(scheduler.waiting) == ["f", "c", "b", "d", "a", "e"]


def test_the_next_free_slot_goes_to_the_highest_priority():
    scheduler, pool = full(max_batch_size=2)
    add(scheduler, pool, "low", 4)
    high = add(scheduler, pool, "high", 4, priority=MAX_PRIORITY)
    step(scheduler)
    assert high.state is RequestState.WAITING, "no bulk sequence is displaced for another one"
    scheduler.abort(scheduler.running[0])
    step(scheduler)
    assert names(scheduler.running) == ["high", "b"]


def test_an_urgent_request_takes_the_slot_of_the_youngest_bulk_sequence():
    scheduler, pool = full(max_batch_size=4)
    urgent = add(scheduler, pool, "urgent", 6, priority=URGENT)
    schedule = step(scheduler)
    assert urgent.num_output_tokens == 1, "its whole prompt is in the very next step"
    assert names(scheduler.running) == ["urgent", "a", "b", "c"]
    assert names(scheduler.waiting) == ["d"]
    assert schedule.num_sequences == 4


def test_the_lowest_priority_makes_room_even_if_another_is_younger():
    scheduler, pool = make(depth=0, max_batch_size=2)
    add(scheduler, pool, "low", 6, max_tokens=50)
    step(scheduler)
    add(scheduler, pool, "high", 6, max_tokens=50, priority=3)
    step(scheduler)
    add(scheduler, pool, "urgent", 6, priority=URGENT)
    step(scheduler)
    assert names(scheduler.running) == ["urgent", "high"]


def test_a_displaced_sequence_comes_back_first_and_computes_only_what_was_evicted():
    scheduler, pool = full(max_batch_size=2)
    for _ in range(8):
        step(scheduler)
    b = scheduler.running[1]
    computed = b.num_computed
    add(scheduler, pool, "late", 6)
    add(scheduler, pool, "urgent", 6, max_tokens=2, priority=URGENT)
    while b.num_displaced == 0 or b.state is RequestState.WAITING:
        schedule = step(scheduler)
    assert names(scheduler.running) == ["a", "b"]
    (again,) = [one for one in schedule.prefills if one.sequence is b] or [None]
    assert again is None or again.num_tokens < pool.block_size
    assert b.num_computed >= computed


def test_urgent_requests_displace_others_up_to_their_slots_only():
    scheduler, pool = full(max_batch_size=4)
    for number in range(4):
        add(scheduler, pool, f"u{number}", 6, max_tokens=50, priority=URGENT)
    for _ in range(3):
        step(scheduler)
    assert names(scheduler.running) == ["u0", "u1", "a", "b"]
    assert names(scheduler.waiting) == ["u2", "u3", "c", "d"]


def test_a_slot_that_becomes_free_goes_to_bulk_work_once_urgent_requests_have_theirs():
    scheduler, pool = full(max_batch_size=4)
    for number in range(3):
        add(scheduler, pool, f"u{number}", 6, max_tokens=50, priority=URGENT)
    step(scheduler)
    scheduler.abort(scheduler.running[2])
    step(scheduler)
    assert names(scheduler.running) == ["u0", "u1", "b", "c"]


def test_without_bulk_work_urgent_requests_have_every_slot():
    scheduler, pool = make(max_batch_size=4)
    for number in range(4):
        add(scheduler, pool, f"u{number}", 6, priority=URGENT)
    assert step(scheduler).num_sequences == 4


def test_free_slots_that_bulk_work_does_not_want_go_to_urgent_requests_beyond_theirs():
    scheduler, pool = make(depth=0, max_batch_size=4)
    add(scheduler, pool, "a", 6, max_tokens=50)
    for number in range(4):
        add(scheduler, pool, f"u{number}", 6, max_tokens=50, priority=URGENT)
    for _ in range(2):
        step(scheduler)
    assert names(scheduler.running) == ["u0", "u1", "u2", "a"]


@pytest.mark.parametrize(
    ("slots", "asked", "expected"), [(8, None, 4), (1, None, 1), (3, None, 1), (8, 2, 2), (4, 9, 4)]
)
def test_urgent_requests_have_half_of_the_batch_or_what_the_setting_says(slots, asked, expected):
    assert EngineConfig(max_batch_size=slots, urgent_slots=asked).slots_for_urgent == expected


def test_bulk_sequences_give_their_blocks_to_an_urgent_request():
    scheduler, pool = make(num_blocks=24, block_size=4, depth=0, max_batch_size=8)
    for name in "abc":
        add(scheduler, pool, name, 20, max_tokens=50)
    step(scheduler)
    urgent = add(scheduler, pool, "urgent", 40, priority=URGENT)
    step(scheduler)
    assert urgent.num_output_tokens == 1
    assert names(scheduler.running) == ["urgent", "a"], "no more than had to"
    pool.check_integrity(one.table for one in (*scheduler.running, *scheduler.waiting))


def test_nothing_is_displaced_for_a_request_that_would_not_fit_anyway():
    scheduler, pool = make(num_blocks=24, block_size=4, depth=0, max_batch_size=8)
    for name in "ab":
        add(scheduler, pool, name, 20, max_tokens=50)
    step(scheduler)
    for sequence in scheduler.running:
        sequence.num_displaced = MAX_DISPLACED
    add(scheduler, pool, "urgent", 70, priority=URGENT)
    add(scheduler, pool, "late", 4)
    step(scheduler)
    assert names(scheduler.running) == ["a", "b"], "and bulk work does not take the blocks that it waits for"


def test_a_sequence_that_was_displaced_often_keeps_its_slot():
    scheduler, pool = full(max_batch_size=1)
    (a,) = scheduler.running
    for number in range(MAX_DISPLACED + 3):
        add(scheduler, pool, f"u{number}", 6, max_tokens=1, priority=URGENT)
        step(scheduler)
        step(scheduler)
    assert a.num_displaced == MAX_DISPLACED
    assert a.state is RequestState.RUNNING


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_bulk_work_ends_under_an_unending_load_of_urgent_requests(slots):
    scheduler, pool = make(depth=0, max_batch_size=slots)
    bulk = [add(scheduler, pool, f"bulk{number}", 6, max_tokens=5) for number in range(6)]
    number, most = 0, 6 * (MAX_OVERTAKEN + 20) * 3
    while any(one.state is not RequestState.FINISHED for one in bulk):
        assert number < most, [len(one) for one in bulk]
        for _ in range(slots):
            add(scheduler, pool, f"u{number}", 6, max_tokens=2, priority=URGENT)
            number += 1
        step(scheduler)


def test_an_urgent_prompt_has_the_step_almost_to_itself():
    scheduler, pool = make(num_blocks=1000, depth=0, max_batch_size=4, token_budget=64)
    add(scheduler, pool, "long", 1000, max_tokens=5)
    step(scheduler)
    add(scheduler, pool, "urgent", 100, priority=URGENT)
    chunks = [{one.sequence.request_id: one.num_tokens for one in step(scheduler).prefills} for _ in range(3)]
    assert chunks == [{"urgent": 56, "long": 8}, {"urgent": 44, "long": 8}, {"long": 64}]


def test_no_more_urgent_requests_begin_than_the_step_computes():
    scheduler, pool = full(max_batch_size=4, token_budget=16)
    for number in range(2):
        add(scheduler, pool, f"u{number}", 30, priority=URGENT)
    step(scheduler)
    assert names(scheduler.running) == ["u0", "a", "b", "c"]


def test_an_urgent_request_that_waits_is_aborted_like_any_other():
    scheduler, pool = full(max_batch_size=2)
    waiting = [add(scheduler, pool, f"u{number}", 6, max_tokens=50, priority=URGENT) for number in range(2)]
    step(scheduler)
    scheduler.abort(waiting[1])
    assert scheduler.drop_finished() == [waiting[1]]
    assert names(scheduler.running) == ["u0", "a"]


def test_when_blocks_run_out_the_lowest_priority_is_preempted_not_the_youngest():
    scheduler, pool = make(num_blocks=12, block_size=4, depth=0, max_batch_size=4)
    add(scheduler, pool, "low", 12, max_tokens=40)
    step(scheduler)
    add(scheduler, pool, "high", 12, max_tokens=40, priority=4)
    while scheduler.preemptions == 0:
        step(scheduler)
    assert names(scheduler.running) == ["high"]
