"""Blocks that no later token sees are freed, section by section; sequences still begin behind what is cached."""

from __future__ import annotations

import pytest

from helix_jobs.engine.cache_sections import CacheSections
from helix_jobs.engine.schedule.block_pool import BlockPool
from helix_jobs.engine.schedule.block_table import FREED, BlockTable
from tests.unit.engine.schedule.scheduling import add, carry_out, make

TOKENS = list(range(100, 140))
WINDOW = 6


def pool_of(num_blocks=40, *, windows=(None, WINDOW), **settings):
    layers = tuple(range(len(windows)))
    return BlockPool(num_blocks, 4, CacheSections(windows=windows, target=layers, draft=layers), **settings)


def filled(pool, num_tokens=40):
    """A table that has computed and verified these tokens, and freed what the next does not see."""
    table = BlockTable(pool)
    table.grow(num_tokens)
    table.freeze(TOKENS, num_tokens)
    table.free_unseen(num_tokens)
    return table


def test_the_last_blocks_stay_that_the_next_token_sees_some_of():
    pool = pool_of()
    table = filled(pool, 32)
    full, windowed = table.sections
    # The token at 32 sees 27 to 32, and 27 lies in block 6.
    assert FREED not in full
    assert [block == FREED for block in windowed] == [True] * 6 + [False] * 2
    assert table.sees_all(32)
    assert not table.sees_all(28)
    assert pool.num_used == 8 + 2
    pool.check_integrity([table])
    table.grow(34)
    assert pool.num_used == 9 + 3
    assert not table.free_unseen(32)
    table.release()
    pool.check_integrity([])
    assert pool.num_free == 40


def test_a_sequence_begins_behind_the_longest_run_whose_last_window_is_cached():
    pool = pool_of()
    filled(pool).release()
    table = BlockTable(pool)
    assert table.longest_cached(TOKENS, 39) == 9
    table.share(9)
    assert [block == FREED for block in table.sections[1]] == [True] * 7 + [False] * 2
    assert table.capacity == 36
    pool.check_integrity([table])
    table.release()
    # Freed blocks are evicted first, the latest of them before the others.
    num_unused = pool.num_free - pool.prefix_cache.num_idle
    pool.take(num_unused + 2)
    assert BlockTable(pool).longest_cached(TOKENS, 32) == 5
    pool.take(5)
    assert BlockTable(pool).longest_cached(TOKENS, 36) == 9, "what was used last is still there"
    assert BlockTable(pool).longest_cached(TOKENS, 35) == 0


@pytest.mark.parametrize("windows", [(None, WINDOW), (WINDOW,)])
def test_a_run_can_end_where_sequences_were_found_to_part(windows):
    """Of two prompts that part at 16, the second keeps what the third needs there, whatever else is evicted."""
    pool = pool_of(60, windows=windows)
    first = filled(pool, 40)
    second = BlockTable(pool)
    second.share(second.longest_cached(TOKENS[:16] + [7] * 24, 39))
    assert second.capacity == 16
    second.grow(40)
    second.freeze(TOKENS[:16] + [7] * 24, 40)
    second.free_unseen(40)
    for table in (first, second):
        table.release()
    pool.take(pool.num_free - pool.prefix_cache.num_idle + 5 * len(windows))
    assert BlockTable(pool).longest_cached(TOKENS[:16] + [8] * 24, 39) == 4


def test_windows_alone_need_no_other_block_of_the_beginning():
    pool = pool_of(8, windows=(WINDOW,))
    table = BlockTable(pool)
    for end in range(4, 44, 4):  # ten blocks, in a pool of eight
        table.grow(end)
        table.freeze(TOKENS, end)
        table.free_unseen(end)
    assert pool.capacity > 1000
    table.release()
    assert BlockTable(pool).longest_cached(TOKENS, 40) == 10
    pool.check_integrity([])


def test_where_the_draft_keeps_up_only_blocks_that_it_has_filled_are_shared():
    tables = {}
    for keeps_up in (False, True):
        pool = pool_of(draft_keeps_up=keeps_up)
        owner = BlockTable(pool)
        owner.grow(16)
        owner.freeze(TOKENS, 16)
        assert BlockTable(pool).longest_cached(TOKENS, 20) == (0 if keeps_up else 4)
        owner.mark_draft_filled(12)
        tables[keeps_up] = BlockTable(pool)
        assert tables[keeps_up].longest_cached(TOKENS, 20) == (3 if keeps_up else 4)
    loose, strict = tables.values()
    strict.share(3)
    assert strict.mark_draft_filled(0) == 12
    assert strict.sees_all(12)
    loose.share(4)
    assert not loose.sees_all(loose.mark_draft_filled(0)), "the draft would need what was freed"


def test_a_pool_holds_a_sequence_that_it_could_not_hold_without_freeing():
    scheduler, pool = make(24, windows=(None, WINDOW), token_budget=8, max_batch_size=1)
    assert pool.capacity == 76, "24 blocks, of which the window never takes more than 5"
    sequence = add(scheduler, pool, "a", 40, max_tokens=24)
    while scheduler.has_unfinished():
        carry_out(scheduler.schedule())
        pool.check_integrity([sequence.table])
        sequence.num_draft_computed = sequence.num_computed
        scheduler.drop_finished()
    assert sequence.error is None
    assert sequence.num_output_tokens == 24
    assert scheduler.preemptions == 0
    assert pool.peak_used <= 24 < 2 * pool.blocks_for(64)


@pytest.mark.parametrize("has_draft", [False, True])
def test_blocks_are_kept_for_a_draft_that_lags_until_others_need_them(has_draft):
    scheduler, pool = make(44, windows=(None, WINDOW), has_draft=has_draft, token_budget=64, max_batch_size=2)
    first = add(scheduler, pool, "a", 48, max_tokens=30)
    carry_out(scheduler.schedule())
    carry_out(scheduler.schedule())
    assert (first.table.sections[1][0] != FREED) == has_draft
    assert not first.is_draft_cut
    second = add(scheduler, pool, "b", 32, max_tokens=4)
    carry_out(scheduler.schedule())
    assert second.num_computed == 32, "it fits beside the first once that gives up what only its draft needs"
    assert first.table.sections[1][0] == FREED
    assert first.is_draft_cut == has_draft
    assert scheduler.preemptions == 0


@pytest.mark.parametrize("num_free_beside", range(10))
def test_a_newcomer_is_not_counted_twice_what_it_shares_with_one_that_gives_it_up(num_free_beside):
    """The cached blocks that it begins behind are not freed for it: it takes them back."""
    scheduler, pool = make(31 + num_free_beside, windows=(40,), token_budget=64, max_batch_size=4)
    first = add(scheduler, pool, "a", 88, max_tokens=200, shared=80)
    while first.num_computed < 119:
        carry_out(scheduler.schedule())  # its draft never runs
    second = add(scheduler, pool, "b", 150, max_tokens=4, shared=80)
    while scheduler.has_unfinished():
        carry_out(scheduler.schedule())
        pool.check_integrity([first.table, second.table])
        scheduler.drop_finished()
    assert (first.error, second.error) == (None, None)
    assert (first.num_output_tokens, second.num_output_tokens) == (200, 4)


@pytest.mark.parametrize("num_blocks", range(56, 76, 2))
def test_a_newcomer_needs_its_own_blocks_where_its_window_leaves_what_it_shares(num_blocks):
    """What another one holds is no room for later tokens: admitted too early, a sequence was preempted at once."""
    scheduler, pool = make(num_blocks, windows=(None, 40), has_draft=False, depth=0, token_budget=16, max_batch_size=2)
    first = add(scheduler, pool, "first", 81, shared=80, max_tokens=60)
    while first.num_computed < 81:
        carry_out(scheduler.schedule())
    second = add(scheduler, pool, "second", 160, shared=80, max_tokens=1)
    least = pool.num_free
    while scheduler.has_unfinished():
        carry_out(scheduler.schedule())
        least = min(least, pool.num_free)
        pool.check_integrity([first.table, second.table])
        scheduler.drop_finished()
    assert (first.error, second.error) == (None, None)
    assert scheduler.preemptions == 0
    # Both run side by side where there is room for them: 20 blocks are shared, 36 are the second's own.
    assert num_blocks < 70 or (second.cached_prompt_tokens == 80 and least <= num_blocks - 56)


@pytest.mark.parametrize("num_tokens", range(40, 60))
def test_what_is_shared_counts_as_long_as_it_is_seen(num_tokens):
    pool = pool_of(step_tokens=4)
    filled(pool)
    table = BlockTable(pool)
    shared = table.longest_cached(TOKENS, 39)
    kept = table.cached_at_most(shared, num_tokens)
    table.share(shared)
    full, windowed = table.sections
    whole, most = -(-num_tokens // 4), 4  # five tokens before a step's four, and the rest of two blocks
    assert kept == [*full, *(block for block in windowed[max(0, whole - most) :] if block != FREED)]


def drafted_steps(*, waiter: bool) -> int:
    """The steps of a sequence whose drafts are all accepted, so that its draft lags by one token after each."""
    scheduler, pool = make(24, depth=4, windows=(None, WINDOW), token_budget=8, max_batch_size=2)
    first = add(scheduler, pool, "a", 8, max_tokens=60)
    carry_out(scheduler.schedule())
    if waiter:
        add(scheduler, pool, "b", 60)
    steps = 0
    while first.num_output_tokens < 60:
        first.num_draft_computed = first.num_computed if steps == 0 else first.num_computed - 1
        schedule = scheduler.schedule()
        assert not first.is_draft_cut
        carry_out(schedule, accepted=5)
        steps += 1
    return steps


def test_a_draft_that_keeps_up_is_not_cut_off_for_one_that_waits():
    assert drafted_steps(waiter=True) == drafted_steps(waiter=False)


def test_nothing_is_given_up_where_all_of_it_would_not_do():
    scheduler, pool = make(44, windows=(None, WINDOW), token_budget=64, max_batch_size=2)
    first = add(scheduler, pool, "a", 48, max_tokens=30)
    carry_out(scheduler.schedule())
    carry_out(scheduler.schedule())
    add(scheduler, pool, "b", 72, max_tokens=4)
    carry_out(scheduler.schedule())
    assert FREED not in first.table.sections[1], "the draft can still catch up"


def test_one_that_does_not_draft_needs_no_block_that_a_draft_has_filled():
    pool = pool_of(draft_keeps_up=True)
    owner = BlockTable(pool)
    owner.grow(16)
    owner.freeze(TOKENS, 16)
    assert BlockTable(pool).longest_cached(TOKENS, 20) == 0
    assert BlockTable(pool).longest_cached(TOKENS, 20, for_draft=False) == 4
