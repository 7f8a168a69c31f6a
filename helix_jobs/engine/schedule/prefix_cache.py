"""PrefixCache: which block holds which run of accepted tokens, so that equal prefixes are computed once. No torch.

A *prefix* is a run of full blocks of tokens from a sequence's first token on, named by its last block and the prefix
before it. A prefix is *cached* when a block holds its last block's keys and values; the block is *idle* when no table
holds it, and can then be shared again or evicted. Only accepted tokens enter, never drafts.

The chain of block hashes is that of vLLM's automatic prefix caching; see also Zheng et al., "SGLang: Efficient
Execution of Structured Language Model Programs", NeurIPS 2024 (RadixAttention).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Prefix:
    """A run of full blocks of tokens, by content: equal prefixes of one cache are one object while anyone holds it.

    So "same content" is "same object", and two prefixes whose hashes collide can never be taken for one another.

    Attributes:
        parent: The prefix one block shorter; None before the first block.
        token_ids: The tokens of the last block.
        block: The physical block that holds the last block's keys and values; None when it is not cached.
    """

    __slots__ = ("__weakref__", "block", "parent", "token_ids")

    def __init__(self, parent: Prefix | None, token_ids: tuple[int, ...]) -> None:
        self.parent = parent
        self.token_ids = token_ids
        self.block: int | None = None


class PrefixCache:
    """Cached prefixes and the idle blocks among theirs, least recently used first.

    Trade-off: every full block is kept until its memory is needed, so a pool looks full although most of it is
    available; evicting early would save nothing but the look.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        # Keyed by the parent's identity and the last block's tokens: the hash of a chain without hashing the chain.
        self._known: WeakValueDictionary[tuple[Prefix | None, tuple[int, ...]], Prefix] = WeakValueDictionary()
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

    def extend(self, prefixes: list[Prefix], token_ids: Sequence[int], num_blocks: int) -> None:
        """Append to the prefixes of ``token_ids`` until there is one for each of its first ``num_blocks`` blocks."""
        size = self._block_size
        for index in range(len(prefixes), num_blocks):
            parent = prefixes[-1] if prefixes else None
            key = (parent, tuple(token_ids[index * size : (index + 1) * size]))
            prefix = self._known.get(key)
            if prefix is None:
                prefix = self._known[key] = Prefix(*key)
            prefixes.append(prefix)

    def add(self, prefix: Prefix, block: int) -> None:
        """Let ``block``, which a table holds, be found by its content.

        Of two blocks with the same content the first stays cached; its owner keeps the other one to itself, since
        exchanging it would change a table that a step may be using.
        """
        if prefix.block is None and block not in self._cached:
            prefix.block = block
            self._cached[block] = prefix

    def forget(self, block: int) -> None:
        """No longer let a block be found; one that is not cached is none of this cache's business."""
        prefix = self._cached.pop(block, None)
        if prefix is not None:
            prefix.block = None
            self._idle.pop(block, None)

    def rest(self, block: int) -> None:
        """The last table let go of a cached block: it is idle, and the most recently used one."""
        self._idle[block] = None

    def wake(self, block: int) -> None:
        """An idle block is held again."""
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
        """Verify that every cached block is found by its content, and by nothing else.

        Raises:
            AssertionError: A bug in the engine.
        """
        for block, prefix in self._cached.items():
            assert prefix.block == block, "a cached block and its prefix point at each other"
            assert len(prefix.token_ids) == self._block_size, "only full blocks are cached"
            assert self._known.get((prefix.parent, prefix.token_ids)) is prefix, "equal prefixes are one object"
        assert self._idle.keys() <= self._cached.keys(), "an idle block is cached"
