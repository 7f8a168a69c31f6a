"""PrefixCache: which block holds which run of accepted tokens, so that equal prefixes are computed once. No torch.

A *prefix* is a run of full blocks of tokens from a sequence's first token on. Its last block's tokens and the prefix
before them identify it. A prefix is *cached* when a physical block holds its last block's keys and values; where layers
form several sections (see ``CacheSections``), a block of each does, or of some. The block is *idle* when no table holds
it; it can then be shared again or evicted. Only accepted tokens enter, never drafts.

The chain of block hashes comes from vLLM's automatic prefix caching; see also Zheng et al., "SGLang: Efficient
Execution of Structured Language Model Programs", NeurIPS 2024 (RadixAttention).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Prefix:
    """A run of full blocks of tokens. Equal prefixes of one cache are the same object while it is referenced.

    Content is therefore compared by identity, and prefixes whose hashes collide are never confused.

    Attributes:
        parent: The prefix one block shorter; before the first block a root, or None.
        token_ids: The tokens of the last block.
        blocks: For each section of layers, the physical block that holds the last block's keys and values; None when it
            is not cached.
    """

    __slots__ = ("__weakref__", "blocks", "parent", "token_ids")

    def __init__(self, parent: Prefix | None, token_ids: tuple[int, ...], num_sections: int) -> None:
        self.parent = parent
        self.token_ids = token_ids
        self.blocks: list[int | None] = [None] * num_sections


class PrefixCache:
    """Cached prefixes, and the idle ones among their blocks, least recently used first.

    Every full block is kept until its memory is needed, so a pool looks full although most of it is available.
    """

    def __init__(self, block_size: int, num_sections: int = 1) -> None:
        self._block_size = block_size
        self._num_sections = num_sections
        # Keyed by the parent's identity and the last block's tokens: no need to hash the whole chain.
        self._known: WeakValueDictionary[tuple[Prefix | None, tuple[int, ...]], Prefix] = WeakValueDictionary()
        self._roots: dict[str, Prefix] = {}
        self._cached: dict[int, Prefix] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_idle(self) -> int:
        """Cached blocks that no table holds."""
        return len(self._idle)

    @property
    def idle_blocks(self) -> Iterator[int]:
        """Cached blocks that no table holds, least recently used first."""
        return iter(self._idle)

    def __contains__(self, block: int) -> bool:
        return block in self._cached

    def root(self, computed_with: str) -> Prefix:
        """The empty prefix of tokens that something else computes than the model alone: an adapter, by its digest.

        Every other prefix names its parent, so that prefixes behind different roots are never the same.
        """
        return self._roots.setdefault(computed_with, Prefix(None, (), self._num_sections))

    def extend(
        self, prefixes: list[Prefix], token_ids: Sequence[int], num_blocks: int, root: Prefix | None = None
    ) -> None:
        """Append to the prefixes of ``token_ids`` until there is one for each of its first ``num_blocks`` blocks.

        Args:
            prefixes: So far.
            token_ids: The tokens.
            num_blocks: How many prefixes there are to be.
            root: Where they begin; None for tokens that the model alone computes.
        """
        size = self._block_size
        for index in range(len(prefixes), num_blocks):
            parent = prefixes[-1] if prefixes else root
            key = (parent, tuple(token_ids[index * size : (index + 1) * size]))
            prefix = self._known.get(key)
            if prefix is None:
                prefix = self._known[key] = Prefix(*key, self._num_sections)
            prefixes.append(prefix)

    def add(self, prefix: Prefix, block: int, section: int = 0) -> None:
        """Cache ``block``, which a table holds, under ``prefix``.

        Of two blocks with the same content the first stays cached. The second stays private to its table, since
        exchanging it would change a table that a step may be using.
        """
        if prefix.blocks[section] is None and block not in self._cached:
            prefix.blocks[section] = block
            self._cached[block] = prefix

    def forget(self, block: int) -> None:
        """Remove a block from the cache; a block that is not cached is ignored."""
        prefix = self._cached.pop(block, None)
        if prefix is not None:
            prefix.blocks[prefix.blocks.index(block)] = None
            self._idle.pop(block, None)

    def rest(self, block: int, *, goes_first: bool = False) -> None:
        """Note that no table holds a cached block any more: it becomes the most recently used idle block.

        Args:
            block: The block.
            goes_first: Let it be evicted next instead.
        """
        self._idle[block] = None
        if goes_first:
            self._idle.move_to_end(block, last=False)

    def wake(self, block: int) -> None:
        """Note that a table holds an idle block again."""
        del self._idle[block]

    def evict(self) -> int:
        """Forget the least recently used idle block and return it. The caller has checked ``num_idle``."""
        block = next(iter(self._idle))
        self.forget(block)
        return block

    def clear(self) -> None:
        """Forget every block."""
        for block in list(self._cached):
            self.forget(block)

    def check_integrity(self) -> None:
        """Verify that each cached block is found by its own content only.

        Raises:
            AssertionError: A bug in the engine.
        """
        for block, prefix in self._cached.items():
            assert prefix.blocks.count(block) == 1, "a cached block and its prefix point at each other"
            assert len(prefix.token_ids) == self._block_size, "only full blocks are cached"
            assert self._known.get((prefix.parent, prefix.token_ids)) is prefix, "equal prefixes are one object"
        assert self._idle.keys() <= self._cached.keys(), "an idle block is cached"
