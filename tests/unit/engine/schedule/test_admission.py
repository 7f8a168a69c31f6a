"""Who starts next: shared prefixes and like lengths together, first come first served otherwise, nobody starved."""

from __future__ import annotations

import pytest

from helix_jobs.engine.schedule import admission
from helix_jobs.engine.schedule.admission import MAX_DEFERRED, MAX_OVERTAKEN, Candidate, choose
from tests.unit.engine.schedule.scheduling import add, admitted, carry_out, make, sequence_of


def candidate(pool, name, num_tokens=10, num_cached=0, next_prefix=None):
    return Candidate(sequence_of(pool, name, range(num_tokens)), num_cached, next_prefix)


@pytest.fixture
def pool():
    return make()[1]


def test_equals_keep_their_order(pool):
    a, b = candidate(pool, "a"), candidate(pool, "b", 11)
    assert choose([a, b], set(), None) is a
    assert choose([a, b], set(), 9) is a
    assert choose([], set(), 9) is None


def test_a_mostly_cached_one_goes_first(pool):
    a, half, more = candidate(pool, "a"), candidate(pool, "b", 10, 5), candidate(pool, "c", 10, 9)
    assert choose([a, half, more], set(), None) is half, "how much more does not count: equals keep their order"
    assert choose([a, candidate(pool, "b", 10, 4)], set(), None) is a


def test_like_lengths_go_together(pool):
    short, long = candidate(pool, "a", 10), candidate(pool, "b", 100)
    assert choose([short, long], set(), 90) is long
    assert choose([short, long], set(), 12) is short
    cached_but_for = candidate(pool, "c", 300, 200)
    assert choose([short, long, cached_but_for], set(), 90) is cached_but_for


def test_who_could_share_more_soon_is_deferred_but_not_for_ever(pool):
    busy = object()
    first, second = candidate(pool, "a", next_prefix=busy), candidate(pool, "b")
    assert choose([first, second], {busy}, None) is second
    assert choose([first], {busy}, None) is None
    assert choose([first, second], {object()}, None) is first
    first.sequence.num_deferred = MAX_DEFERRED
    assert choose([first, second], {busy}, None) is first


def test_who_was_overtaken_often_enough_goes_first_whatever_speaks_against_it(pool):
    busy = object()
    cached, poor = candidate(pool, "a", 10, 9), candidate(pool, "b", next_prefix=busy)
    poor.sequence.num_overtaken = MAX_OVERTAKEN
    assert choose([cached, poor], {busy}, None) is poor


def test_one_of_two_that_arrive_together_computes_their_prefix():
    scheduler, pool = make(block_size=4)
    a, b = add(scheduler, pool, "a", 20, shared=14), add(scheduler, pool, "b", 22, shared=14)
    first = scheduler.schedule()
    assert admitted(first) == ["a"]
    carry_out(first)
    second = scheduler.schedule()
    assert [(p.sequence, p.num_tokens) for p in second.prefills] == [(b, 22 - 12)]
    assert b.cached_prompt_tokens == scheduler.cached_prompt_tokens == 12
    assert a.table.blocks[:3] == b.table.blocks[:3]
    assert a.cached_prompt_tokens == 0


def test_an_equal_prompt_shares_all_but_what_its_last_token_needs():
    for length, shared in ((12, 8), (13, 12)):
        scheduler, pool = make(block_size=4)
        for name in "ab":
            scheduler.add(sequence_of(pool, name, range(length)))
        carry_out(scheduler.schedule())
        (prefill,) = scheduler.schedule().prefills
        assert prefill.num_tokens == length - shared
        assert prefill.emits


def test_others_take_the_slot_of_a_deferred_one():
    scheduler, pool = make(max_batch_size=2)
    for name, shared in (("a", 12), ("b", 12), ("c", 0)):
        add(scheduler, pool, name, 14, shared=shared)
    assert admitted(scheduler.schedule()) == ["a", "c"]


def test_nobody_waits_for_a_prefix_that_is_never_finished():
    """The one who computes the prefix is preempted again and again."""
    scheduler, pool = make(token_budget=40)
    a, b = add(scheduler, pool, "a", 30, shared=16), add(scheduler, pool, "b", 30, shared=16)
    waited = 0
    while b.admitted_at is None:
        scheduler.schedule()  # and the step fails
        waited += 1
        assert waited <= MAX_DEFERRED + 1
        if b.admitted_at is None:
            scheduler.preempt(a)
    assert waited == MAX_DEFERRED + 1


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_nobody_is_overtaken_more_often_than_the_bound(bound, monkeypatch):
    monkeypatch.setattr(admission, "MAX_OVERTAKEN", bound)
    scheduler, pool = make(max_batch_size=2, depth=0)
    carry_out_all(scheduler, add(scheduler, pool, "first", 20, max_tokens=3, shared=16))
    poor = add(scheduler, pool, "poor", 20, max_tokens=3)
    rich = [add(scheduler, pool, f"rich{i}", 20, max_tokens=3, shared=16) for i in range(8)]
    order = []
    while scheduler.has_unfinished():
        schedule = scheduler.schedule()
        order += admitted(schedule)
        carry_out(schedule)
        scheduler.drop_finished()
    assert order.index("poor") == bound
    assert poor.num_overtaken == bound
    assert sorted(order) == sorted(s.request_id for s in (poor, *rich))


def carry_out_all(scheduler, _):
    while scheduler.has_unfinished():
        carry_out(scheduler.schedule())
        scheduler.drop_finished()


def test_a_request_beyond_the_look_ahead_overtakes_nobody(monkeypatch):
    monkeypatch.setattr("helix_jobs.engine.schedule.scheduler.LOOK_AHEAD", 2)
    scheduler, pool = make(max_batch_size=1, depth=0)
    carry_out_all(scheduler, add(scheduler, pool, "first", 20, max_tokens=3, shared=16))
    for name in "abc":
        add(scheduler, pool, name, 20, shared=0 if name < "c" else 16)
    assert admitted(scheduler.schedule()) == ["a"]
    scheduler.abort(scheduler.running[0])
    scheduler.drop_finished()
    assert admitted(scheduler.schedule()) == ["c"]


def test_shared_blocks_that_are_held_need_no_room():
    scheduler, pool = make(num_blocks=12, block_size=4, depth=0)
    add(scheduler, pool, "a", 25, shared=24, max_tokens=3)
    carry_out(scheduler.schedule())
    b = add(scheduler, pool, "b", 25, shared=24, max_tokens=3)
    scheduler.schedule()  # 7 blocks are held; 7 more would not fit, but one does
    assert b in scheduler.running
    assert pool.num_used == 8
