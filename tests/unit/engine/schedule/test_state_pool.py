"""Rows of recurrent states: who holds them, and which snapshots go when there are too many."""

from __future__ import annotations

import pytest

from helix_jobs.engine.config import StateConfig
from helix_jobs.engine.schedule.prefix_cache import Prefix, PrefixCache
from helix_jobs.engine.schedule.state_pool import StatePool
from helix_jobs.engine.schedule.state_table import StateTable
from helix_jobs.engine.state_span import KeptState

BLOCK = 4


def prefixes(text: list[int]) -> list[Prefix]:
    found: list[Prefix] = []
    PrefixCache(BLOCK).extend(found, text, len(text) // BLOCK)
    return found


def computed(pool: StatePool, text: list[int], names: list[Prefix]) -> StateTable:
    """A table whose text is computed and verified, with a snapshot at its last full block."""
    table = StateTable(pool, BLOCK)
    table.want_snapshot(len(text))
    table.begin(0, len(text))
    table.settle(len(text))
    table.publish(names, len(text))
    return table


def test_a_step_reads_one_row_and_writes_another() -> None:
    table = StateTable(StatePool(StateConfig(num_slots=1, num_drafts=2)), BLOCK)
    first = table.begin(0, 5)
    assert first.row is None
    (kept,) = first.keeps
    second = table.begin(5, 6)
    assert (second.length, second.row) == (5, kept.row)
    assert second.keeps[0].row != kept.row


def test_a_step_that_was_not_committed_is_repeated_from_the_same_state() -> None:
    table = StateTable(StatePool(StateConfig(num_slots=1, num_drafts=2)), BLOCK)
    table.begin(0, 5)
    failed = table.begin(5, 6)
    again = table.begin(5, 6)
    assert (again.length, again.row) == (failed.length, failed.row) == (5, again.row)


def test_a_step_that_failed_leaves_no_snapshot_behind_accepted_drafts() -> None:
    pool = StatePool(StateConfig(num_slots=1, num_snapshots=1, num_drafts=4))
    table = StateTable(pool, BLOCK)
    table.begin(0, 126)
    table.begin(126, 127)
    first = table.begin(130, 131)
    assert [kept.length for kept in first.keeps] == [128, 131], "drafts were accepted past a snapshot"
    again = table.begin(130, 131)
    assert (again.length, again.row) == (first.length, first.row) == (127, first.row)
    table.settle(130)
    names = prefixes(list(range(131)))
    table.publish(names, 130)
    assert pool.longest(names) == 0
    pool.check_integrity([table])


@pytest.mark.parametrize("num_accepted", range(5))
def test_a_step_that_passed_keeps_its_states_however_many_drafts_are_accepted(num_accepted: int) -> None:
    pool = StatePool(StateConfig(num_slots=1, num_snapshots=1, num_drafts=4))
    table = StateTable(pool, BLOCK)
    table.begin(0, 126)
    table.begin(126, 127)
    passed = table.begin(130, 131)
    following = table.begin(131 + num_accepted, 132 + num_accepted)
    assert (following.length, following.row) == (131, passed.keeps[-1].row)
    names = prefixes(list(range(131)))
    table.publish(names, 131 + num_accepted)
    assert pool.longest(names) == 128 // BLOCK
    pool.check_integrity([table])


def test_a_prompt_behind_which_a_stop_token_follows_at_once_leaves_its_snapshot() -> None:
    pool, text = StatePool(StateConfig(num_slots=1, num_snapshots=1)), list(range(10))
    names = prefixes(text)
    table = StateTable(pool, BLOCK)
    table.want_snapshot(9)
    table.begin(0, 10)
    table.settle(9)  # nothing was appended: the last known token counts as not computed
    table.publish(names, 9)
    assert pool.longest(names) == 2
    pool.check_integrity([table])


def test_accepted_drafts_are_replayed_behind_the_checkpoint() -> None:
    table = StateTable(StatePool(StateConfig(num_slots=1, num_drafts=2)), BLOCK)
    table.begin(0, 5)
    table.begin(5, 6)
    behind = table.begin(8, 9)
    assert behind.length == 6
    assert [kept.length for kept in behind.keeps] == [9]


def test_a_snapshot_is_shared_and_outlives_its_sequence() -> None:
    pool, text = StatePool(StateConfig(num_slots=2, num_snapshots=1)), list(range(10))
    names = prefixes(text)
    table = computed(pool, text, names)
    table.release()
    other = StateTable(pool, BLOCK)
    assert other.longest(names) == 2
    other.share(names[:2])
    assert other.begin(8, 10).length == 8
    pool.check_integrity([table, other])


def test_the_snapshot_used_longest_ago_goes_unless_it_is_being_read() -> None:
    pool = StatePool(StateConfig(num_slots=3, num_snapshots=2))
    texts = [[index * 100 + place for place in range(4)] for index in range(4)]
    names = [prefixes(text) for text in texts]
    for index in (0, 1):
        computed(pool, texts[index], names[index]).release()
    reader = StateTable(pool, BLOCK)
    reader.share(names[0])
    computed(pool, texts[2], names[2]).release()
    assert [pool.longest(one) for one in names] == [1, 0, 1, 0]
    other = StateTable(pool, BLOCK)
    other.share(names[2])
    computed(pool, texts[3], names[3]).release()
    assert [pool.longest(one) for one in names] == [1, 0, 1, 0], "both are being read"
    pool.check_integrity([reader, other])


def test_a_snapshot_that_is_made_again_is_as_new() -> None:
    pool = StatePool(StateConfig(num_slots=1, num_snapshots=3))
    texts = [[index * 100 + place for place in range(4)] for index in range(4)]
    names = [prefixes(text) for text in texts]
    for index in (0, 1, 0, 2, 3):
        computed(pool, texts[index], names[index]).release()
    assert [pool.longest(one) for one in names] == [1, 0, 1, 1]
    pool.check_integrity([])


def test_a_state_that_was_not_verified_is_never_a_snapshot() -> None:
    pool, text = StatePool(StateConfig(num_slots=1, num_snapshots=2)), list(range(8))
    names = prefixes(text)
    table = StateTable(pool, BLOCK)
    table.want_snapshot(8)
    assert table.begin(0, 8).keeps[-1] == KeptState(8, table.rows[-1])
    table.settle(8)
    table.publish(names, 7)
    assert pool.longest(names) == 0
    table.release(names)
    pool.check_integrity([table])
