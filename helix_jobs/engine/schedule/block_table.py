"""BlockPool and BlockTable: which physical cache blocks hold which tokens. No torch.

A *block* holds the keys and values of ``block_size`` consecutive tokens. A *block table* maps a sequence's logical
blocks to physical ones. Tables share the blocks of equal prefixes: a block's *reference count* is the number of tables
that hold it. ``BlockPool.check_integrity`` checks the invariants: every block is either free, or idle in the prefix
cache, or held by as many tables as its count says; and no table writes a block that another table holds or that the
prefix cache could hand out.

Terms and idea: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP
2023.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from helix_jobs.engine.schedule.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from helix_jobs.engine.schedule.prefix_cache import Prefix


class BlockPool:
    """The physical blocks of one engine: which are free, held by tables, or idle in the prefix cache.

    Target and draft caches share the numbering: block ``b`` is a row of both. One allocation covers both models, and
    neither can run out alone. The target's part of a shared block is always computed. The draft's part may not be, as
    the draft model may not have run, so each block is marked once the draft has *filled* it. Trade-off: a drafter that
    holds fewer tokens than the target leaves its part of the last block unused; a second allocator would save that and
    double the ways to fail.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = PrefixCache(block_size)
        # A stack: blocks freed last are reused first, while they are still in the processor's caches.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks
        self._draft_filled = bytearray(num_blocks)
        # Blocks are first handed out in ascending order: every block below this one has been in use.
        self._first_untouched = 0
        self.peak_used = 0

    @property
    def num_free(self) -> int:
        """Blocks no table holds, the idle ones of the prefix cache included."""
        return len(self._free) + self.prefix_cache.num_idle

    @property
    def num_used(self) -> int:
        """Blocks held by tables."""
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` tokens of one sequence occupy."""
        return -(-num_tokens // self.block_size)

    def num_held(self, blocks: Iterable[int]) -> int:
        """How many of these blocks a table holds already: sharing those does not lower ``num_free``."""
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
        """Count one more table that holds a cached block."""
        if self._references[block] == 0:
            self.prefix_cache.wake(block)
        self._references[block] += 1
        self.peak_used = max(self.peak_used, self.num_used)

    def give_back(self, blocks: Sequence[int]) -> None:
        """Release one table's blocks, given in logical order. Cached blocks no other table holds become idle.

        A sequence's last block is evicted first: it is useful only together with the blocks before it.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self.prefix_cache:
                    self.prefix_cache.rest(block)
                else:
                    self._free.append(block)

    def reset(self) -> None:
        """Free every block and clear the prefix cache. Only when no table is left."""
        self.prefix_cache.clear()
        self._free = list(range(self.num_blocks - 1, -1, -1))
        self._references = [0] * self.num_blocks

    def used_free_blocks(self) -> list[int]:
        """Free blocks that a sequence has written before, without the idle ones of the prefix cache."""
        return [block for block in self._free if block < self._first_untouched]

    def is_draft_filled(self, block: int) -> bool:
        """Whether the draft's cache holds all tokens of the block as well."""
        return bool(self._draft_filled[block])

    def mark_draft_filled(self, block: int) -> None:
        """Note that the draft's cache holds all tokens of the block, all accepted."""
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
        """Whether the block may be written: one table holds it, and the prefix cache does not."""
        return self._references[block] == 1 and block not in self.prefix_cache


class BlockTable:
    """The physical blocks of one sequence, in logical order. The length is kept, and rolled back, by the sequence.

    The leading blocks are *frozen*: full of accepted tokens, shared or ready to be shared, and never written again. All
    blocks behind them belong to this table alone.

    Attributes:
        blocks: Physical block numbers.
        prefixes: One for each leading full block that was looked up. They outlive the blocks, so that a preempted
            sequence need not be hashed again.
        num_frozen: How many leading blocks are frozen.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.blocks: list[int] = []
        self.prefixes: list[Prefix] = []
        self.num_frozen = 0
        self._num_verified = 0  # leading blocks from which this sequence itself computed finite logits
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
        # Look up all full blocks at once: other sequences may want to wait while this one computes them.
        self._pool.prefix_cache.extend(self.prefixes, token_ids, len(token_ids) // self._pool.block_size)
        found: list[int] = []
        for prefix in self.prefixes[: num_tokens // self._pool.block_size]:
            if prefix.block is None:
                break
            found.append(prefix.block)
        return found

    @property
    def unfrozen_prefixes(self) -> list[Prefix]:
        """Prefixes this sequence is computing or has yet to compute: others may find them cached soon."""
        return self.prefixes[self.num_frozen :]

    def share(self, blocks: Sequence[int]) -> None:
        """Begin an empty table with blocks that ``cached_blocks`` found."""
        assert not self.blocks, "only an empty table begins with shared blocks"
        for block in blocks:
            self._pool.share(block)
        self.blocks.extend(blocks)
        self.num_frozen = len(self.blocks)

    def freeze(self, token_ids: Sequence[int], num_tokens: int) -> None:
        """Let others share the full blocks of the first ``num_tokens`` tokens, all accepted and computed."""
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
            How many tokens it really holds: other sequences may have filled the shared blocks that follow.
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
            discard: Do not trust the blocks' contents: remove them all from the prefix cache.
        """
        cache = self._pool.prefix_cache
        if discard:
            for block in self.blocks:
                cache.forget(block)
        else:
            # The cache may have held a duplicate of a block and evicted it since: offer ours again.
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
