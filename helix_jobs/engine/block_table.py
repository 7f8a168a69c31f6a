"""BlockPool and BlockTable: which physical cache blocks hold which tokens. No torch.

A *block* holds the keys and values of ``block_size`` consecutive tokens of one sequence. A *block table* maps a
sequence's logical blocks to physical ones. The invariant, checked by ``BlockPool.check_integrity``: every block is
either free or in exactly one table.

The terms and the idea are those of Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention", SOSP 2023.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class BlockPool:
    """The free physical blocks of one engine.

    Target and draft caches share the numbering: block ``b`` is a row of both, so that one allocation covers both models
    and neither can run dry alone. Trade-off: a drafter that holds fewer tokens than the target leaves its part of the
    last block unused; a second allocator would save that and double the ways to fail.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # A stack: blocks freed last are reused first, while they are warm in the processor's caches.
        self._free = list(range(num_blocks - 1, -1, -1))
        self.peak_used = 0

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks held by tables."""
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` tokens of one sequence occupy."""
        return -(-num_tokens // self.block_size)

    def take(self, count: int) -> list[int]:
        """Hand out ``count`` blocks. The caller has checked ``num_free``."""
        assert count <= len(self._free), "the scheduler allocates only what it has counted free"
        if count == 0:
            return []
        taken = self._free[-count:][::-1]
        del self._free[-count:]
        self.peak_used = max(self.peak_used, self.num_used)
        return taken

    def give_back(self, blocks: Iterable[int]) -> None:
        """Return blocks to the pool."""
        self._free.extend(reversed(list(blocks)))

    def reset(self) -> None:
        """Make every block free again, when no table is left."""
        self._free = list(range(self.num_blocks - 1, -1, -1))

    def used_free_blocks(self) -> list[int]:
        """Free blocks that some sequence has written before: fresh ones are handed out only when these are gone."""
        return [block for block in self._free if block < self.peak_used]

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Verify that free blocks and table entries partition the pool.

        Raises:
            AssertionError: A block is lost, doubly owned or out of range: a bug in the engine.
        """
        seen = list(self._free)
        for table in tables:
            seen.extend(table.blocks)
        assert sorted(seen) == list(range(self.num_blocks)), "every block is free or in exactly one table"


class BlockTable:
    """The physical blocks of one sequence, in logical order. Rolling back is forgetting a length, so it keeps none."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.blocks: list[int] = []

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
        self.blocks.extend(self._pool.take(self.missing_blocks(num_tokens)))

    def release(self) -> None:
        """Give every block back. Safe to repeat."""
        blocks, self.blocks = self.blocks, []
        self._pool.give_back(blocks)
