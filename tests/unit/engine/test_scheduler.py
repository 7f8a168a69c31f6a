from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import request

from helix_jobs.engine.block_table import BlockPool, BlockTable
from helix_jobs.engine.config import EngineConfig, SpeculationConfig
from helix_jobs.engine.request import FinishReason, RequestState
from helix_jobs.engine.scheduler import Scheduler
from helix_jobs.engine.sequence import Sequence
from helix_jobs.errors import OutOfMemoryError


def make(num_blocks=100, block_size=4, depth=2, **config):
    pool = BlockPool(num_blocks, block_size)
    return Scheduler(EngineConfig(speculation=SpeculationConfig(depth=depth), **config), pool), pool


def add(scheduler, pool, name, num_prompt, max_tokens=8):
    sequence = Sequence(
        request(name, range(1, num_prompt + 1), max_tokens=max_tokens), BlockTable(pool), frozenset(), 10_000
    )
    scheduler.add(sequence)
    return sequence


def carry_out(schedule, accepted=1):
    """Do to the sequences what a step with this many emitted tokens would do."""
    for prefill in schedule.prefills:
        prefill.sequence.num_computed += prefill.num_tokens
        if prefill.emits:
            prefill.sequence.commit([7], 0.0)
    for decode in schedule.decodes:
        decode.sequence.commit([7] * min(accepted, decode.depth + 1), 0.0)
        decode.sequence.num_computed = len(decode.sequence) - 1


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
    assert [(p.num_tokens, p.emits) for p in resumed.prefills] == [(len(a) - 1, False)]
    carry_out(resumed)
    assert scheduler.schedule().decodes[0].sequence is a


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
    sequences = [add(scheduler, pool, str(i), p, m) for i, (p, m) in enumerate(lengths)]
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
            sequences[accepted % len(sequences)].finish(FinishReason.ABORTED)
    assert sorted(s.request_id for s in ended) == sorted(s.request_id for s in sequences)
    assert pool.num_free == num_blocks
    for sequence in ended:
        if sequence.finish_reason is FinishReason.LENGTH:
            assert sequence.num_output_tokens == sequence.params.max_tokens
        elif sequence.finish_reason is None:
            assert isinstance(sequence.error, OutOfMemoryError)


def test_integrity_check_sees_a_block_held_twice():
    pool = BlockPool(4, 2)
    a, b = BlockTable(pool), BlockTable(pool)
    a.grow(3)
    b.blocks = list(a.blocks)
    with pytest.raises(AssertionError, match="exactly one table"):
        pool.check_integrity([a, b])
