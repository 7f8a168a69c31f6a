"""BlockPool and BlockTable: which physical cache blocks hold which tokens. No torch.

A *block* holds the keys and values of ``block_size`` consecutive tokens. A *block table* maps a sequence's logical
blocks to physical ones. Tables share the blocks of equal prefixes: a block's *reference count* is the number of tables
that hold it. The invariants, checked by ``BlockPool.check_integrity``: every block is either free, or idle in the
prefix cache, or held by as many tables as its count says; and what more than one table can reach, or a later one could
find in the prefix cache, nobody writes.

The terms and the idea are those of Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention", SOSP 2023.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from helix_jobs.engine.schedule.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from helix_jobs.engine.schedule.prefix_cache import Prefix


class BlockPool:
    """The physical blocks of one engine: who holds them, and what those that nobody holds could still be good for.

    Target and draft caches share the numbering: block ``b`` is a row of both, so that one allocation covers both models
    and neither can run dry alone. The target's part of a shared block is always computed; the draft's need not be (its
    model may not have run), so each block is marked once the draft has *filled* it. Trade-off: a drafter that holds
    fewer tokens than the target leaves its part of the last block unused; a second allocator would save that and double
    the ways to fail.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = PrefixCache(block_size)
        # A stack: blocks freed last are reused first, while they are warm in the processor's caches.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks
        self._draft_filled = bytearray(num_blocks)
        # Blocks are handed out for the first time in ascending order: those below this one were in use before.
        self._first_untouched = 0
        self.peak_used = 0

    @property
    def num_free(self) -> int:
        """Blocks nobody holds, the idle ones of the prefix cache included."""
        return len(self._free) + self.prefix_cache.num_idle

    @property
    def num_used(self) -> int:
        """Blocks held by tables."""
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` tokens of one sequence occupy."""
        return -(-num_tokens // self.block_size)

    def num_held(self, blocks: Iterable[int]) -> int:
        """How many of these blocks some table holds: sharing them takes nothing from ``num_free``."""
        return sum(self._references[block] > 0 for block in blocks)

    def take(self, count: int) -> list[int]:
        """Hand out ``count`` fresh blocks, evicting idle ones if need be. The caller has checked ``num_free``."""
        assert count <= self.num_free, "the scheduler allocates only what it has counted free"
        taken = [self._free.pop() if self._free else self.prefix_cache.evict() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
            self._draft_filled[block] = False
            self._first_untouched = max(self._first_untouched, block + 1)
        self.peak_used = max(self.peak_used, self.num_used)
        return taken

    def share(self, block: int) -> None:
        """Add a table to those that hold a cached block."""
        if self._references[block] == 0:
            self.prefix_cache.wake(block)
        self._references[block] += 1
        self.peak_used = max(self.peak_used, self.num_used)

    def give_back(self, blocks: Sequence[int]) -> None:
        """Take one table's hold off its blocks, given in logical order; cached ones nobody else holds become idle.

        A sequence's last block is the first to be evicted: it is of use only together with those before it.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self.prefix_cache:
                    self.prefix_cache.rest(block)
                else:
                    self._free.append(block)

    def reset(self) -> None:
        """Make every block free again and forget what they hold, when no table is left."""
        self.prefix_cache.clear()
        self._free = list(range(self.num_blocks - 1, -1, -1))
        self._references = [0] * self.num_blocks

    def used_free_blocks(self) -> list[int]:
        """Free blocks that some sequence has written before, those of the prefix cache not among them."""
        return [block for block in self._free if block < self._first_untouched]

    def is_draft_filled(self, block: int) -> bool:
        """Whether the draft's cache, too, holds all tokens of the block."""
        return bool(self._draft_filled[block])

    def mark_draft_filled(self, block: int) -> None:
        """The draft's cache holds all tokens of the block, and they are accepted ones."""
        self._draft_filled[block] = True

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Verify the module's invariants.

        Args:
            tables: Every table that holds blocks.

        Raises:
            AssertionError: A block is lost, miscounted or writable where it is shared: a bug in the engine.
        """
        self.prefix_cache.check_integrity()
        held: Counter[int] = Counter()
        for table in tables:
            assert len(set(table.blocks)) == len(table.blocks), "a table holds a block once"
            held.update(table.blocks)
            table.check_integrity()
        counts = [held[block] for block in range(self.num_blocks)]
        assert counts == self._references, "a block's reference count is the number of tables that hold it"
        everywhere = [*self._free, *self.prefix_cache.idle_blocks, *held]
        assert sorted(everywhere) == list(range(self.num_blocks)), "every block is free, idle or held, and only one"
        assert not any(block in self.prefix_cache for block in self._free), "a cached block is idle or held"

    def is_private(self, block: int) -> bool:
        """Whether one table alone holds the block and nobody else can find it: it may be written."""
        return self._references[block] == 1 and block not in self.prefix_cache


class BlockTable:
    """The physical blocks of one sequence, in logical order. Rolling back is forgetting a length, so it keeps none.

    The leading blocks are *frozen*: full of accepted tokens, shared or open to be shared, and never written again. All
    behind them belong to this table alone.

    Attributes:
        blocks: Physical block numbers.
        prefixes: One for each leading full block that was asked about; they outlive the blocks, so that a preempted
            sequence need not name its tokens again.
        num_frozen: How many leading blocks are frozen.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.blocks: list[int] = []
        self.prefixes: list[Prefix] = []
        self.num_frozen = 0
        self._num_verified = 0  # of the frozen blocks, those this sequence has itself seen work
        self._num_draft_filled = 0

    @property
    def block_size(self) -> int:
        """Tokens a block."""
        return self._pool.block_size

    @property
    def capacity(self) -> int:
        """Tokens the allocated blocks can hold."""
        return len(self.blocks) * self._pool.block_size

    @property
    def pool_capacity(self) -> int:
        """Tokens one sequence could hold if it had every block."""
        return self._pool.num_blocks * self._pool.block_size

    def missing_blocks(self, num_tokens: int) -> int:
        """Blocks to allocate before ``num_tokens`` tokens fit."""
        return max(0, self._pool.blocks_for(num_tokens) - len(self.blocks))

    def grow(self, num_tokens: int) -> None:
        """Allocate until ``num_tokens`` tokens fit."""
        missing = self.missing_blocks(num_tokens)
        if missing:
            self.blocks.extend(self._pool.take(missing))

    def cached_blocks(self, token_ids: Sequence[int], num_tokens: int) -> list[int]:
        """The longest run of cached blocks that hold the first of ``token_ids``, at most ``num_tokens`` of them."""
        # All full blocks are named at once: while this sequence computes them, others may want to wait for them.
        self._pool.prefix_cache.extend(self.prefixes, token_ids, len(token_ids) // self._pool.block_size)
        found: list[int] = []
        for prefix in self.prefixes[: num_tokens // self._pool.block_size]:
            if prefix.block is None:
                break
            found.append(prefix.block)
        return found

    @property
    def unfrozen_prefixes(self) -> list[Prefix]:
        """Prefixes this sequence is computing, or would have to compute: others may find them soon."""
        return self.prefixes[self.num_frozen :]

    def share(self, blocks: Sequence[int]) -> None:
        """Begin an empty table with blocks that ``cached_blocks`` found."""
        assert not self.blocks, "only an empty table begins with shared blocks"
        for block in blocks:
            self._pool.share(block)
        self.blocks.extend(blocks)
        self.num_frozen = len(self.blocks)

    def freeze(self, token_ids: Sequence[int], num_tokens: int) -> None:
        """Open the full blocks of the first ``num_tokens`` tokens, all accepted and computed, to be shared."""
        num_full = num_tokens // self._pool.block_size
        self._num_verified = max(self._num_verified, num_full)
        if num_full <= self.num_frozen:
            return
        self._pool.prefix_cache.extend(self.prefixes, token_ids, num_full)
        for index in range(self.num_frozen, num_full):
            self._pool.prefix_cache.add(self.prefixes[index], self.blocks[index])
        self.num_frozen = num_full

    def mark_draft_filled(self, num_tokens: int) -> int:
        """Note that the draft's cache holds the first ``num_tokens`` tokens, all accepted.

        Returns:
            How many it really holds: other sequences' drafts may have filled the shared blocks behind them.
        """
        pool = self._pool
        num_full = num_tokens // pool.block_size
        for block in self.blocks[self._num_draft_filled : num_full]:
            pool.mark_draft_filled(block)
        while num_full < self.num_frozen and pool.is_draft_filled(self.blocks[num_full]):
            num_full += 1
        self._num_draft_filled = max(self._num_draft_filled, num_full)
        return max(num_tokens, num_full * pool.block_size)

    def release(self, *, discard: bool = False) -> None:
        """Give every block back. Safe to repeat.

        Args:
            discard: Let none of them be found in the prefix cache any more: what they hold is not to be trusted.
        """
        cache = self._pool.prefix_cache
        if discard:
            for block in self.blocks:
                cache.forget(block)
        else:
            # A twin that kept this table's block out of the cache may have been evicted since.
            for prefix, block in zip(self.prefixes[: self._num_verified], self.blocks, strict=False):
                cache.add(prefix, block)
        blocks, self.blocks = self.blocks, []
        self.num_frozen = self._num_verified = self._num_draft_filled = 0
        self._pool.give_back(blocks)

    def check_integrity(self) -> None:
        """Verify that frozen blocks hold what their prefixes say and that the others may be written.

        Raises:
            AssertionError: A bug in the engine.
        """
        assert self.num_frozen <= min(len(self.blocks), len(self.prefixes)), "frozen blocks are full and have names"
        parent = None
        for index, prefix in enumerate(self.prefixes):
            assert prefix.parent is parent, "a sequence's prefixes are a chain"
            parent = prefix
            if index < self.num_frozen and self.blocks[index] in self._pool.prefix_cache:
                assert prefix.block == self.blocks[index], "a cached block is found by its own tokens"
        assert all(map(self._pool.is_private, self.blocks[self.num_frozen :])), "no block is writable in two tables"
