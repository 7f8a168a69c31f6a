from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.engine.config import EngineConfig, SpeculationConfig
from helix_jobs.engine.request import FinishReason, RequestState
from helix_jobs.engine.schedule.scheduler import Scheduler
from helix_jobs.errors import EngineError, OutOfMemoryError
from tests.unit.engine.schedule.scheduling import add, carry_out, make, sequence_of


def test_prompts_share_the_token_budget_in_order():
    scheduler, pool = make(token_budget=10)
    a, b, c = (add(scheduler, pool, name, 6) for name in "abc")
    first = scheduler.schedule()
    assert [(p.sequence, p.num_tokens, p.emits) for p in first.prefills] == [(a, 6, True), (b, 4, False)]
    carry_out(first)
    second = scheduler.schedule()
    assert [d.sequence for d in second.decodes] == [a]
    assert [(p.sequence, p.num_tokens, p.emits) for p in second.prefills] == [(b, 2, True), (c, 6, True)]


def test_depth_stops_where_the_output_must_end():
    scheduler, pool = make(depth=4)
    sequence = add(scheduler, pool, "a", 3, max_tokens=4)
    carry_out(scheduler.schedule())
    assert scheduler.schedule().decodes[0].depth == 2  # 1 of 4 tokens is out; 2 drafts and the target's own make 4
    assert sequence.max_depth(4) == 2


def test_batch_slots_bound_the_running_sequences():
    scheduler, pool = make(max_batch_size=2)
    for name in "abc":
        add(scheduler, pool, name, 4)
    assert scheduler.schedule().num_sequences == 2
    assert len(scheduler.waiting) == 1


def test_the_youngest_is_preempted_and_comes_back_first():
    scheduler, pool = make(num_blocks=10, block_size=4, depth=0)
    a, b, c = (add(scheduler, pool, name, n, max_tokens=40) for name, n in (("a", 7), ("b", 7), ("c", 7)))
    carry_out(scheduler.schedule())
    assert [s.state for s in (a, b, c)] == [RequestState.RUNNING] * 3
    for _ in range(9):
        carry_out(scheduler.schedule())
    assert c.state is RequestState.WAITING
    assert c.table.blocks == []
    assert c.num_computed == 0
    late = add(scheduler, pool, "late", 1)
    assert scheduler.waiting[0] is c
    assert late in scheduler.waiting


def test_a_preempted_sequence_resumes_one_short_of_its_end():
    scheduler, pool = make()
    a = add(scheduler, pool, "a", 5)
    carry_out(scheduler.schedule())
    carry_out(scheduler.schedule(), accepted=2)
    scheduler.preempt_youngest(1)
    resumed = scheduler.schedule()
    assert a.num_computed == 4  # its first block is still cached
    assert [(p.num_tokens, p.emits) for p in resumed.prefills] == [(len(a) - 1 - 4, False)]
    carry_out(resumed)
    assert scheduler.schedule().decodes[0].sequence is a


def test_a_preempted_sequence_finds_its_own_blocks_again():
    scheduler, pool = make(depth=0)
    a = add(scheduler, pool, "a", 13)
    for _ in range(4):
        carry_out(scheduler.schedule())
    scheduler.schedule()
    blocks = a.table.blocks[:4]
    scheduler.preempt(a)
    resumed = scheduler.schedule()
    assert a.table.blocks == [*blocks, a.table.blocks[-1]]
    assert [(d.sequence, d.depth) for d in resumed.decodes] == [(a, 0)]  # 16 of 17 tokens are cached: it decodes on
    assert resumed.prefills == ()
    assert a.cached_prompt_tokens == 0, "only sharing with others counts"
    assert scheduler.preemptions == 1


def test_what_a_preempted_sequence_computed_but_never_verified_is_computed_again():
    scheduler, pool = make(token_budget=8)
    a = add(scheduler, pool, "a", 13)
    carry_out(scheduler.schedule())
    scheduler.preempt(a)
    assert [p.num_tokens for p in scheduler.schedule().prefills] == [8]
    assert a.num_computed == 0


def test_discarded_blocks_are_shared_with_nobody():
    scheduler, pool = make()
    a = add(scheduler, pool, "a", 13, shared=8)
    carry_out(scheduler.schedule())
    b = add(scheduler, pool, "b", 13, shared=8)
    carry_out(scheduler.schedule())
    assert b.cached_prompt_tokens == 8
    a.was_recomputed = True
    scheduler.preempt(a, discard=True)
    c = add(scheduler, pool, "c", 13, shared=8)
    pool.check_integrity(s.table for s in (a, b, c))
    scheduler.schedule()
    assert a.num_computed == 0
    assert c.cached_prompt_tokens == 0
    assert not set(b.table.blocks) & {*a.table.blocks, *c.table.blocks}


def test_a_sequence_computed_again_for_safety_trusts_nobody_s_blocks():
    scheduler, pool = make()
    add(scheduler, pool, "a", 13, shared=8)
    carry_out(scheduler.schedule())
    b = add(scheduler, pool, "b", 13, shared=8)
    b.was_recomputed = True
    assert [(p.sequence, p.num_tokens) for p in scheduler.schedule().prefills] == [(b, 13)]


def test_what_the_last_step_of_a_sequence_completed_is_shared_too():
    scheduler, pool = make()
    add(scheduler, pool, "a", 13, shared=12, max_tokens=1)
    carry_out(scheduler.schedule())
    scheduler.drop_finished()
    b = add(scheduler, pool, "b", 13, shared=12)
    scheduler.schedule()
    assert b.cached_prompt_tokens == 12


def test_an_abort_is_found_wherever_the_sequence_stands():
    scheduler, pool = make(max_batch_size=1)
    a, b, c = (add(scheduler, pool, name, 4) for name in "abc")
    scheduler.schedule()
    for sequence in (c, a):
        scheduler.abort(sequence)
    assert scheduler.drop_finished() == [a, c]
    assert list(scheduler.waiting) == [b]
    assert scheduler.drop_finished() == []


def test_a_sequence_that_ended_before_it_was_queued_leaves_at_once():
    scheduler, pool = make()
    sequence = sequence_of(pool, "a", [1, 2])
    sequence.fail(EngineError("no"))
    scheduler.add(sequence)
    assert scheduler.drop_finished() == [sequence]


def test_waiting_sequences_are_not_searched_when_none_ended():
    class Unsearchable(deque):
        def __iter__(self):
            raise AssertionError("a long queue is not looked through every step")

    scheduler, pool = make(max_batch_size=1)
    a = add(scheduler, pool, "a", 4, max_tokens=1)
    add(scheduler, pool, "b", 4)
    carry_out(scheduler.schedule())
    scheduler.waiting = Unsearchable(scheduler.waiting)
    assert scheduler.drop_finished() == [a]


def test_the_depth_allocated_for_is_the_highest_the_controller_may_choose():
    pool = make()[1]
    for speculation, depth in (
        (SpeculationConfig(depth=3, adaptive=False), 3),
        (SpeculationConfig(depth=3, max_depth=9), 9),
        (SpeculationConfig(depth=0), 0),
    ):
        scheduler = Scheduler(EngineConfig(speculation=speculation), pool)
        a = add(scheduler, pool, f"a{depth}", 5, max_tokens=40)
        carry_out(scheduler.schedule())
        assert [d.depth for d in scheduler.schedule().decodes] == [depth]
        assert a.table.capacity >= len(a) + depth


def test_the_target_never_starts_inside_a_shared_block():
    scheduler, pool = make()
    a = add(scheduler, pool, "a", 9)
    carry_out(scheduler.schedule())
    scheduler.schedule()
    a.num_computed = 7  # a bug elsewhere
    with pytest.raises(AssertionError, match="never writes a shared block"):
        scheduler.schedule()


def test_a_sequence_that_cannot_fit_alone_fails_alone():
    scheduler, pool = make(num_blocks=3, block_size=4, depth=0)
    big = add(scheduler, pool, "big", 30)
    small = add(scheduler, pool, "small", 3)
    for _ in range(3):
        carry_out(scheduler.schedule())
        scheduler.drop_finished()
    assert isinstance(big.error, OutOfMemoryError)
    assert small.num_output_tokens > 0


def test_shrink_halves_and_grow_returns():
    scheduler, pool = make(max_batch_size=8)
    for name in "abcdefgh":
        add(scheduler, pool, name, 4)
    scheduler.schedule()
    scheduler.shrink()
    assert len(scheduler.running) == 4
    assert [s.request_id for s in scheduler.waiting] == list("efgh")
    assert scheduler.schedule().num_sequences == 4
    scheduler.step_passed()
    assert scheduler.batch_limit == 4
    for _ in range(100):
        scheduler.step_passed()
    assert scheduler.batch_limit == 8


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=12),
    num_blocks=st.integers(4, 40),
    block_size=st.integers(1, 6),
    depth=st.integers(0, 4),
    budget=st.integers(1, 40),
    slots=st.integers(1, 6),
    events=st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["", "", "", "shrink", "abort"])), max_size=40),
)
def test_every_sequence_ends_and_every_block_comes_back(
    *, lengths, num_blocks, block_size, depth, budget, slots, events
):
    scheduler, pool = make(num_blocks, block_size, depth, token_budget=budget, max_batch_size=slots)
    sequences = [add(scheduler, pool, str(i), p, max_tokens=m) for i, (p, m) in enumerate(lengths)]
    ended = []
    for accepted, event in [*events, *[(1, "")] * 5000]:
        ended += scheduler.drop_finished()
        if not scheduler.has_unfinished():
            break
        schedule = scheduler.schedule()
        pool.check_integrity(s.table for s in sequences)
        for planned in (*schedule.decodes, *schedule.prefills):
            assert planned.sequence in scheduler.running
            assert planned.sequence.table.missing_blocks(planned.sequence.num_computed + 1) == 0
        assert len(scheduler.running) <= slots
        assert sum(p.num_tokens for p in schedule.prefills) <= budget
        carry_out(schedule, accepted)
        if event == "shrink" and scheduler.active:
            scheduler.shrink()
            scheduler.step_passed()
        if event == "abort":
            sequences[accepted % len(sequences)].finish(FinishReason.ABORTED)  # behind the scheduler's back
    assert sorted(s.request_id for s in ended) == sorted(s.request_id for s in sequences)
    assert pool.num_free == num_blocks
    for sequence in ended:
        if sequence.finish_reason is FinishReason.LENGTH:
            assert sequence.num_output_tokens == sequence.params.max_tokens
        elif sequence.finish_reason is None:
            assert isinstance(sequence.error, OutOfMemoryError)
