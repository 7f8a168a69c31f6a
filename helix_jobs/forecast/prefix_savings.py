"""PrefixSavings: prompt tokens that a cache of so many blocks will share, when prompts come in this order."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class PrefixSavings:
    """A prefix cache without keys and values: it knows blocks by the hash of their tokens and of all before them.

    Trade-off: two prefixes whose hashes of 64 bits collide count as one, which in a million prompts hardly happens; to
    keep their tokens would take as much memory as the file.

    Args:
        block_size: Tokens a block; only whole blocks are shared.
        num_blocks: Blocks that the cache holds; the least recently used go first.
    """

    def __init__(self, block_size: int, num_blocks: int) -> None:
        self._size = block_size
        self._most = num_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def add(self, token_ids: Sequence[int], adapter: str | None = None) -> int:
        """Take the next prompt, and return how many of its first tokens are shared."""
        shared = 0
        # The last token is always computed, as its logits are needed.
        shareable = (len(token_ids) - 1) // self._size * self._size
        parent = hash(adapter)
        is_known = True
        for begin in range(0, len(token_ids) - self._size + 1, self._size):
            parent = hash((parent, tuple(token_ids[begin : begin + self._size])))
            is_known = is_known and parent in self._blocks
            if is_known and begin < shareable:
                shared += self._size
            self._blocks[parent] = None
            self._blocks.move_to_end(parent)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        return shared
