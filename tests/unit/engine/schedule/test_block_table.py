from __future__ import annotations

import pytest

from helix_jobs.engine.schedule.block_pool import BlockPool
from helix_jobs.engine.schedule.block_table import BlockTable

TOKENS = list(range(100, 120))


def filled(pool, tokens=TOKENS):
    """A table that has computed and verified these tokens."""
    table = BlockTable(pool)
    table.grow(len(tokens))
    table.freeze(tokens, len(tokens))
    return table


def sharing(pool, tokens=TOKENS):
    table = BlockTable(pool)
    table.share(table.longest_cached(tokens, len(tokens) - 1))
    return table


def test_a_shared_block_is_free_when_its_last_table_lets_go():
    pool = BlockPool(10, 4)
    a = filled(pool)
    b = sharing(pool)
    assert b.blocks == a.blocks[:4]
    assert pool.num_free == 5
    a.release()
    pool.check_integrity([a, b])
    assert pool.num_free == 6
    b.release()
    b.release()
    pool.check_integrity([])
    assert pool.num_free == 10
    assert pool.num_used == 0
    assert pool.peak_used == 5


def test_uncached_blocks_go_first_then_the_least_recently_used_last_block_first():
    pool = BlockPool(9, 4)
    old, new = filled(pool, TOKENS[:8]), filled(pool, TOKENS[8:20])
    old_blocks, new_blocks = list(old.blocks), list(new.blocks)
    old.release()
    new.release()
    free = pool.take(4)
    assert not set(free) & {*old_blocks, *new_blocks}
    assert pool.take(5) == [*old_blocks[::-1], *new_blocks[::-1]]
    assert pool.num_free == 0


def test_use_makes_recent():
    pool = BlockPool(4, 4)
    first, second = filled(pool, TOKENS[:8]), filled(pool, TOKENS[8:16])
    first_blocks, second_blocks = list(first.blocks), list(second.blocks)
    first.release()
    second.release()
    sharing(pool, TOKENS[:9]).release()
    assert pool.take(2) == second_blocks[::-1]
    assert pool.take(2) == first_blocks[::-1]


def test_an_evicted_prefix_ends_the_run():
    pool = BlockPool(5, 4)
    filled(pool).release()
    last, before_last = pool.take(2)
    probe = BlockTable(pool)
    assert probe.longest_cached(TOKENS, 20) == 3
    pool.give_back([before_last, last])
    assert probe.longest_cached(TOKENS, 20) == 3


def test_the_second_of_two_equal_blocks_stays_its_owner_s_alone_and_steps_in_when_the_first_is_gone():
    pool = BlockPool(8, 4)
    twins = [BlockTable(pool), BlockTable(pool)]
    for twin in twins:
        twin.grow(16)
    for twin in twins:
        twin.freeze(TOKENS, 16)
    pool.check_integrity(twins)
    first, second = twins
    second_blocks = list(second.blocks)
    assert sharing_blocks(pool) == first.blocks
    first.release()
    assert pool.take(4)
    assert sharing_blocks(pool) == []
    second.release()
    assert sharing_blocks(pool) == second_blocks


def sharing_blocks(pool):
    (found,) = cached(pool, TOKENS)
    return found


def cached(pool, tokens):
    table = BlockTable(pool)
    return table.cached_blocks(table.longest_cached(tokens, len(tokens)))


def test_what_a_table_only_shares_is_not_offered_again_after_a_discard():
    """Somebody found the blocks spoilt; a table that has not yet seen them work cannot vouch for them."""
    pool = BlockPool(8, 4)
    a = filled(pool, TOKENS[:8])
    b = sharing(pool, TOKENS[:9])
    a.release(discard=True)
    pool.check_integrity([a, b])
    assert pool.used_free_blocks() == []
    b.release()
    assert sharing_blocks(pool) == []
    assert sorted(pool.used_free_blocks()) == [0, 1]


def test_idle_blocks_are_not_among_the_free_ones_to_be_cleared():
    pool = BlockPool(8, 4)
    a = filled(pool, TOKENS[:10])
    blocks = list(a.blocks)
    a.release()
    assert pool.used_free_blocks() == blocks[2:]


def test_the_draft_s_part_of_a_shared_block_counts_as_far_as_it_is_filled():
    pool = BlockPool(8, 4)
    a = filled(pool)
    assert a.mark_draft_filled(11) == 11
    b = sharing(pool)
    assert b.mark_draft_filled(0) == 8
    assert a.mark_draft_filled(16) == 16
    assert b.mark_draft_filled(9) == 16, "the other's draft has been here meanwhile"
    for table in (a, b):
        table.release()
    assert sharing(pool).mark_draft_filled(0) == 16


def test_a_block_handed_out_anew_holds_no_draft():
    pool = BlockPool(2, 4)
    a = filled(pool, TOKENS[:8])
    a.mark_draft_filled(8)
    a.release()
    again = filled(pool, TOKENS[8:16])
    assert again.mark_draft_filled(0) == 0


def test_tokens_that_hash_alike_are_not_taken_for_each_other():
    """In Python -1 and -2 have the same hash."""
    assert hash((-1,) * 4) == hash((-2,) * 4)
    pool = BlockPool(8, 4)
    filled(pool, [-1] * 8)
    assert cached(pool, [-2] * 8) == [[]]
    assert cached(pool, [-1] * 4 + [-2] * 4) == [[0]]


def test_equal_blocks_behind_different_prefixes_are_different():
    pool = BlockPool(8, 4)
    filled(pool, [1, 1, 1, 1, 5, 5, 5, 5])
    assert cached(pool, [2, 2, 2, 2, 5, 5, 5, 5]) == [[]]
    assert cached(pool, [5, 5, 5, 5]) == [[]]


def test_reset_forgets_everything():
    pool = BlockPool(8, 4)
    a = filled(pool)
    a.blocks.clear()
    pool.reset()
    pool.check_integrity([])
    assert pool.num_free == 8
    assert sharing_blocks(pool) == []


def test_nothing_is_remembered_of_prefixes_nobody_holds():
    pool = BlockPool(4, 2)
    for start in range(0, 2000, 10):
        filled(pool, range(start, start + 8)).release()
    assert len(pool.prefix_cache._known) == 4


def held_twice(pool):
    a, b = BlockTable(pool), BlockTable(pool)
    a.grow(8)
    b.blocks[:] = a.blocks
    return [a, b], "reference count"


def miscounted(pool):
    a = filled(pool)
    b = sharing(pool)
    b.blocks.clear()
    b.num_frozen = 0
    return [a, b], "reference count"


def lost(pool):
    pool._free.pop()
    return [], "free, idle or held"


def writable_and_shared(pool):
    a = filled(pool)
    b = sharing(pool)
    b.num_frozen = 2
    return [a, b], "writable in two tables"


def writable_and_cached(pool):
    a = filled(pool)
    a.num_frozen = 2
    return [a], "writable in two tables"


def free_and_cached(pool):
    a = filled(pool, TOKENS[:4])
    pool._references[a.blocks[0]] = 0
    pool._free.append(a.blocks.pop())
    a.num_frozen = 0
    return [a], "idle or held"


def wrong_tokens(pool):
    a = filled(pool)
    pool.prefix_cache._cached[a.blocks[1]].token_ids = (1, 2, 3, 4)
    return [a], "one object"


def wrong_chain(pool):
    a = filled(pool)
    a.prefixes[1], a.prefixes[2] = a.prefixes[2], a.prefixes[1]
    return [a], "chain"


@pytest.mark.parametrize(
    "damage",
    [
        held_twice,
        miscounted,
        lost,
        writable_and_shared,
        writable_and_cached,
        free_and_cached,
        wrong_tokens,
        wrong_chain,
    ],
)
def test_the_integrity_check_sees(damage):
    pool = BlockPool(8, 4)
    tables, message = damage(pool)
    with pytest.raises(AssertionError, match=message):
        pool.check_integrity(tables)
