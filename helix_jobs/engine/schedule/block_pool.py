"""BlockPool: which physical cache blocks are free, held by block tables, or idle in the prefix cache. No torch.

A *block* holds the keys and values of ``block_size`` consecutive tokens in the layers of one section (see
``CacheSections``). A *block table* maps a sequence's logical blocks to physical ones. Tables share the blocks of equal
prefixes: a block's *reference count* is the number of tables that hold it. ``BlockPool.check_integrity`` checks the
invariants: every block is either free, or idle in the prefix cache, or held by as many tables as its count says; and no
table writes a block that another table holds or that the prefix cache could hand out.

Terms and idea: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP
2023.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from helix_jobs.engine.cache_sections import ONE_SECTION, CacheSections
from helix_jobs.engine.schedule.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from helix_jobs.engine.schedule.block_table import BlockTable


class BlockPool:
    """The physical blocks of one engine: which are free, held by tables, or idle in the prefix cache.

    Target and draft caches share the numbering: block ``b`` is a row of both. One allocation covers both models, and
    neither can run out alone. The target's part of a shared block is always computed. The draft's part may not be, as
    the draft model may not have run, so each block is marked once the draft has *filled* it. Trade-off: a drafter that
    holds fewer tokens than the target leaves its part of the last block unused; a second allocator would save that and
    double the ways to fail.

    Args:
        num_blocks: Physical blocks.
        block_size: Tokens a block.
        sections: The sections of target and draft.
        step_tokens: The most tokens of one sequence that one step computes, drafts included.
        draft_keeps_up: Whether the draft model computes every token that the target computes, as it does with a fixed
            depth. A sequence then begins with cached blocks only if the draft has filled them: else it could not draft
            where blocks were freed, and its drafts would depend on what ran before.

    Attributes:
        frees: Whether blocks are freed while a sequence grows.
        follows_draft: Whether the draft model reads blocks that are freed, so that they are kept for it too.
        capacity: Tokens that one sequence could hold if it had every block.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        sections: CacheSections = ONE_SECTION,
        *,
        step_tokens: int = 1,
        draft_keeps_up: bool = False,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.sections = sections
        self.frees = self.sections.frees
        self.follows_draft = any(self.sections.windows[section] is not None for section in self.sections.draft)
        self.draft_keeps_up = draft_keeps_up and self.follows_draft
        self.capacity = self.sections.capacity(num_blocks, step_tokens, block_size)
        self._step_tokens = step_tokens
        self.prefix_cache = PrefixCache(block_size, len(self.sections.windows))
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
        """Blocks of one section that ``num_tokens`` tokens of one sequence occupy."""
        return -(-num_tokens // self.block_size)

    def most_blocks(self, num_tokens: int) -> int:
        """Blocks that one sequence holds at most while it grows to ``num_tokens`` tokens."""
        return self.sections.most_blocks(num_tokens, self._step_tokens, self.block_size)

    def most_of_sections(self, num_tokens: int) -> tuple[int, ...]:
        """The part of ``most_blocks`` of each section."""
        return self.sections.most_of_sections(num_tokens, self._step_tokens, self.block_size)

    def num_held(self, blocks: Iterable[int]) -> int:
        """How many of these blocks a table holds already: sharing those does not lower ``num_free``."""
        return sum(self._references[block] > 0 for block in blocks)

    def num_holders(self, block: int) -> int:
        """How many tables hold a block."""
        return self._references[block]

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

    def give_back(self, blocks: Sequence[int], *, goes_first: bool = False) -> None:
        """Release one table's blocks, given in logical order. Cached blocks no other table holds become idle.

        A sequence's last block is evicted first: it is useful only together with the blocks before it.

        Args:
            blocks: The blocks.
            goes_first: Let those that become idle be evicted before all others.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self.prefix_cache:
                    self.prefix_cache.rest(block, goes_first=goes_first)
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
            blocks = table.held_blocks
            assert len(set(blocks)) == len(blocks), "a table holds a block once"
            held.update(blocks)
            table.check_integrity()
        counts = [held[block] for block in range(self.num_blocks)]
        assert counts == self._references, "a block's reference count is the number of tables that hold it"
        everywhere = [*self._free, *self.prefix_cache.idle_blocks, *held]
        assert sorted(everywhere) == list(range(self.num_blocks)), "every block is free, idle or held, and only one"
        assert not any(block in self.prefix_cache for block in self._free), "a cached block is idle or held"

    def is_private(self, block: int) -> bool:
        """Whether the block may be written: one table holds it, and the prefix cache does not."""
        return self._references[block] == 1 and block not in self.prefix_cache
