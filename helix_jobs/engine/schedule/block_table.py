"""BlockTable: which physical cache blocks hold the tokens of one sequence. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from helix_jobs.engine.cache_sections import first_seen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from helix_jobs.engine.schedule.block_pool import BlockPool
    from helix_jobs.engine.schedule.prefix_cache import Prefix

# In the place of a block that was freed because no later token sees it.
FREED: Final = -1
# Marks the root of prefixes of long sequences.
_LONG: Final = "+long"


class BlockTable:
    """The physical blocks of one sequence, in logical order, for each section of layers (see ``CacheSections``).

    The length is kept, and rolled back, by the sequence. The leading blocks are *frozen*: full of accepted tokens,
    shared or ready to be shared, and never written again. All blocks behind them belong to this table alone. In
    sections with a window the leading blocks are freed once no later token sees them.

    Attributes:
        sections: Physical block numbers of each section, ``FREED`` in the place of a freed one. All are equally long.
        prefixes: One for each leading full block that was looked up. They outlive the blocks, so that a preempted
            sequence need not be hashed again.
        num_frozen: How many leading blocks are frozen.
        is_long: Whether they are computed as tokens of a sequence beyond the model's original context (LongRoPE).

    Args:
        pool: Where blocks come from.
        computed_with: What computes the tokens, where it is not the model alone: the digest of an adapter. Only tables
            with the same one, and both long or both not, share blocks.
        is_long: Of the first tokens, as above.
    """

    def __init__(self, pool: BlockPool, computed_with: str | None = None, *, is_long: bool = False) -> None:
        self._pool = pool
        self._computed_with = computed_with
        self.is_long = False
        self._root = None if computed_with is None else pool.prefix_cache.root(computed_with)
        self.sections: tuple[list[int], ...] = tuple([] for _ in pool.sections.windows)
        self.prefixes: list[Prefix] = []
        self.num_frozen = 0
        self._num_verified = 0  # leading blocks from which this sequence itself computed finite logits
        self._num_draft_filled = 0
        self._num_freed = [0] * len(self.sections)
        # How many leading blocks other sequences have computed, as far as they were cached in full.
        self._num_common = 0
        if is_long:
            self.begin_long()

    def begin_long(self) -> None:
        """From now on this table, which is empty, holds tokens of a sequence beyond the original context."""
        assert not self.blocks, "what the blocks hold was computed as tokens of a short sequence"
        if not self.is_long:
            self.is_long = True
            self._root = self._pool.prefix_cache.root(f"{self._computed_with or ''}{_LONG}")
            self.prefixes.clear()

    @property
    def blocks(self) -> list[int]:
        """The blocks of the first section."""
        return self.sections[0]

    @property
    def held_blocks(self) -> list[int]:
        """The blocks of all sections, in logical order."""
        if len(self.sections) == 1 and not self._num_freed[0]:
            return self.sections[0]
        return [block for blocks in zip(*self.sections, strict=True) for block in blocks if block != FREED]

    def blocks_behind(self, position: int) -> list[int]:
        """The blocks of all sections that hold no token before ``position``."""
        first = self._pool.blocks_for(position)
        return [block for blocks in self.sections for block in blocks[first:] if block != FREED]

    @property
    def block_size(self) -> int:
        """Tokens a block."""
        return self._pool.block_size

    @property
    def frees(self) -> bool:
        """Whether blocks are freed while the sequence grows."""
        return self._pool.frees

    @property
    def follows_draft(self) -> bool:
        """Whether the draft model reads blocks that are freed."""
        return self._pool.follows_draft

    @property
    def capacity(self) -> int:
        """Tokens the allocated blocks can hold, those whose blocks were freed included."""
        return len(self.blocks) * self._pool.block_size

    @property
    def pool_capacity(self) -> int:
        """Tokens one sequence could hold if it had every block."""
        return self._pool.capacity

    def missing_blocks(self, num_tokens: int) -> int:
        """Blocks to allocate before ``num_tokens`` tokens fit."""
        return max(0, self._pool.blocks_for(num_tokens) - len(self.blocks)) * len(self.sections)

    def grow(self, num_tokens: int) -> None:
        """Allocate until ``num_tokens`` tokens fit."""
        missing = self.missing_blocks(num_tokens)
        if missing:
            taken = self._pool.take(missing)
            for section, blocks in enumerate(self.sections):
                blocks.extend(taken[section :: len(self.sections)])

    def longest_cached(self, token_ids: Sequence[int], num_tokens: int, *, for_draft: bool = True) -> int:
        """The most leading blocks that the sequence can begin behind, of at most ``num_tokens`` of ``token_ids``.

        Layers without a window need all of them; those with one need only what the token behind them sees.

        Args:
            token_ids: The sequence's tokens.
            num_tokens: How many of them may be shared.
            for_draft: Whether the draft model computes the sequence, too: see ``BlockPool``'s ``draft_keeps_up``.
        """
        wants_filled = for_draft and self._pool.draft_keeps_up
        # Look up all full blocks at once: other sequences may want to wait while this one computes them.
        self._look_up(token_ids, len(token_ids) // self._pool.block_size)
        windows = self._pool.sections.windows
        count = num_tokens // self._pool.block_size
        for section, window in enumerate(windows):
            if window is None:
                count = self._num_cached(section, count, wants_filled=wants_filled)
        common = count
        while self._pool.frees and count and (missing := self._missing_behind(count, wants_filled)) is not None:
            count = missing
        # Where every layer has a window, nothing else tells how far others have come.
        self._num_common = common if None in windows else count
        return count

    def _look_up(self, token_ids: Sequence[int], num_blocks: int) -> None:
        """Name the first ``num_blocks`` blocks."""
        self._pool.prefix_cache.extend(self.prefixes, token_ids, num_blocks, self._root)

    def _num_cached(self, section: int, most: int, *, wants_filled: bool) -> int:
        """How many of the first ``most`` blocks are cached, from the first on."""
        if wants_filled:
            return next((index for index in range(most) if not self._is_cached(index, section, wants_filled)), most)
        for index, prefix in enumerate(self.prefixes[:most]):
            if prefix.blocks[section] is None:
                return index
        return most

    def _is_cached(self, index: int, section: int, wants_filled: bool) -> bool:  # noqa: FBT001  (private)
        block = self.prefixes[index].blocks[section]
        return block is not None and (not wants_filled or self._pool.is_draft_filled(block))

    def _missing_behind(self, count: int, wants_filled: bool) -> int | None:  # noqa: FBT001  (private)
        """A block that a sequence would need to begin behind ``count`` blocks and that is not cached.

        None can begin behind it and before ``count`` either: it would see this block as well.
        """
        for section, window in enumerate(self._pool.sections.windows):
            if window is not None:
                for index in range(count - 1, self._first_seen(window, count) - 1, -1):
                    if not self._is_cached(index, section, wants_filled):
                        return index
        return None

    def _first_seen(self, window: int | None, num_blocks: int) -> int:
        """The first block that the token behind ``num_blocks`` blocks sees."""
        return first_seen(window, num_blocks * self._pool.block_size, self._pool.block_size)

    @property
    def unfrozen_prefixes(self) -> list[Prefix]:
        """Prefixes this sequence is computing or has yet to compute: others may find them cached soon."""
        return self.prefixes[self.num_frozen :]

    def cached_blocks(self, num_blocks: int) -> list[list[int]]:
        """For each section, the blocks that ``share`` would take: the last ones, where it has a window."""
        found = []
        for section, window in enumerate(self._pool.sections.windows):
            seen = self.prefixes[self._first_seen(window, num_blocks) : num_blocks]
            found.append([block for prefix in seen if (block := prefix.blocks[section]) is not None])
        return found

    def cached_at_most(self, num_blocks: int, num_tokens: int) -> list[int]:
        """Of the blocks that ``share`` would take, those that the table still has when it holds the most.

        Where a section has a window, the first ones are behind it by then, and others have been taken instead.

        Args:
            num_blocks: As for ``share``.
            num_tokens: The tokens to which the table grows.
        """
        whole, kept = self._pool.blocks_for(num_tokens), []
        for blocks, most in zip(self.cached_blocks(num_blocks), self._pool.most_of_sections(num_tokens), strict=True):
            first = num_blocks - len(blocks)
            kept += blocks[max(0, whole - most - first) :]
        return kept

    def share(self, num_blocks: int) -> None:
        """Begin an empty table with as many cached blocks as ``longest_cached`` found, or fewer that will do."""
        assert not self.blocks, "only an empty table begins with shared blocks"
        for section, blocks in enumerate(self.cached_blocks(num_blocks)):
            freed = self._first_seen(self._pool.sections.windows[section], num_blocks)
            assert freed + len(blocks) == num_blocks, "what is shared is cached"
            for block in blocks:
                self._pool.share(block)
            self.sections[section].extend([*[FREED] * freed, *blocks])
            self._num_freed[section] = freed
        self.num_frozen = num_blocks

    def free_unseen(self, position: int) -> bool:
        """Give back the blocks that neither the token at ``position`` nor a later one sees; whether there were any.

        Their content stays in the prefix cache until their memory is needed. They are evicted first, for a sequence can
        begin only right behind them, except those before the place where this sequence was found to part from others:
        the next may part there as well.
        """
        is_any = False
        for section, (blocks, unseen) in enumerate(self._unseen(position)):
            if not unseen:
                continue
            window = self._pool.sections.windows[section]
            parting = range(self._first_seen(window, self._num_common), self._num_common)
            for index in unseen:
                self._pool.give_back(blocks[index : index + 1], goes_first=index not in parting)
                blocks[index] = FREED
            self._num_freed[section], is_any = unseen.stop, True
        return is_any

    def unseen_blocks(self, position: int) -> list[int]:
        """The blocks that ``free_unseen`` would give back."""
        return [blocks[index] for blocks, unseen in self._unseen(position) for index in unseen]

    def _unseen(self, position: int) -> Iterator[tuple[list[int], range]]:
        """For each section, its blocks and where the held ones are that no token from ``position`` on sees."""
        for window, blocks, first in zip(self._pool.sections.windows, self.sections, self._num_freed, strict=True):
            yield blocks, range(first, min(first_seen(window, position, self._pool.block_size), len(blocks)))

    def sees_all(self, position: int) -> bool:
        """Whether every block is still held that the token at ``position`` sees."""
        pairs = zip(self._pool.sections.windows, self._num_freed, strict=True)
        return all(freed <= first_seen(window, position, self._pool.block_size) for window, freed in pairs)

    def freeze(self, token_ids: Sequence[int], num_tokens: int) -> None:
        """Let others share the full blocks of the first ``num_tokens`` tokens, all accepted and computed."""
        num_full = num_tokens // self._pool.block_size
        self._num_verified = max(self._num_verified, num_full)
        if num_full <= self.num_frozen:
            return
        self._look_up(token_ids, num_full)
        self._offer(self.num_frozen, num_full)
        self.num_frozen = num_full

    def _offer(self, first: int, end: int) -> None:
        """Put the blocks from ``first`` to ``end`` that are still held into the prefix cache."""
        for section, blocks in enumerate(self.sections):
            for index in range(max(first, self._num_freed[section]), end):
                self._pool.prefix_cache.add(self.prefixes[index], blocks[index], section)

    def mark_draft_filled(self, num_tokens: int) -> int:
        """Note that the draft's cache holds the first ``num_tokens`` tokens, all accepted.

        Returns:
            How many tokens it really holds: other sequences may have filled the shared blocks that follow.
        """
        pool = self._pool
        num_full = num_tokens // pool.block_size
        for blocks in self.sections:
            for block in blocks[self._num_draft_filled : num_full]:
                if block != FREED:
                    pool.mark_draft_filled(block)
        while num_full < self.num_frozen and self._is_draft_filled(num_full):
            num_full += 1
        self._num_draft_filled = max(self._num_draft_filled, num_full)
        return max(num_tokens, num_full * pool.block_size)

    def _is_draft_filled(self, index: int) -> bool:
        return all(blocks[index] == FREED or self._pool.is_draft_filled(blocks[index]) for blocks in self.sections)

    def release(self, *, discard: bool = False) -> None:
        """Give every block back. Safe to repeat.

        Args:
            discard: Do not trust the blocks' contents: remove them all from the prefix cache.
        """
        held = list(self.held_blocks)
        if discard:
            for block in held:
                self._pool.prefix_cache.forget(block)
        else:
            # The cache may have held a duplicate of a block and evicted it since: offer ours again.
            self._offer(0, min(self._num_verified, len(self.blocks)))
        for blocks in self.sections:
            blocks.clear()
        self.num_frozen = self._num_verified = self._num_draft_filled = self._num_common = 0
        self._num_freed = [0] * len(self.sections)
        self._pool.give_back(held)

    def check_integrity(self) -> None:
        """Verify that frozen blocks hold what their prefixes say and that the others may be written.

        Raises:
            AssertionError: A bug in the engine.
        """
        assert self.num_frozen <= min(len(self.blocks), len(self.prefixes)), "frozen blocks are full and have names"
        assert len(set(map(len, self.sections))) == 1, "sections hold the same tokens"
        parent = self._root
        for prefix in self.prefixes:
            assert prefix.parent is parent, "a sequence's prefixes are a chain"
            parent = prefix
        for section, blocks in enumerate(self.sections):
            freed = self._num_freed[section]
            assert [block == FREED for block in blocks] == [place < freed for place in range(len(blocks))], (
                "the leading blocks are freed, and no others"
            )
            for prefix, block in list(zip(self.prefixes, blocks, strict=False))[freed : self.num_frozen]:
                if block in self._pool.prefix_cache:
                    assert prefix.blocks[section] == block, "a cached block is found by its own tokens"
            writable = blocks[max(freed, self.num_frozen) :]
            assert all(map(self._pool.is_private, writable)), "no block is writable in two tables"
