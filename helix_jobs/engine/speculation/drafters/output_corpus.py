"""OutputCorpus: the latest finished outputs of a run, as one indexed text. No torch."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.speculation.drafters.ngram_index import MIN_MATCH, NgramIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

# Ends every output in the text. No model has this token id, so no match spans two outputs.
END_OF_OUTPUT: Final = -1


class OutputCorpus:
    """The latest outputs: the oldest are dropped whole, so that the text never exceeds ``max_tokens``.

    Trade-off: dropping whole outputs leaves up to one output's length unused, but no output loses its beginning, where
    jobs of one template are most alike.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._index = NgramIndex([])
        self._lengths: deque[int] = deque()

    @property
    def tokens(self) -> list[int]:
        """The text, oldest output first, with ``END_OF_OUTPUT`` after each output."""
        return self._index.tokens

    @property
    def num_entries(self) -> int:
        """Entries the index holds in memory."""
        return self._index.num_entries

    def add(self, token_ids: Sequence[int]) -> None:
        """Add an output. If it is longer than the whole corpus may be, only its last tokens are kept."""
        room = self._max_tokens - 1
        kept = token_ids[-room:] if room > 0 else ()
        if len(kept) <= MIN_MATCH:  # too short to match anything
            return
        self._lengths.append(len(kept) + 1)
        num_dropped = 0
        while len(self.tokens) + len(kept) + 1 - num_dropped > self._max_tokens:
            num_dropped += self._lengths.popleft()
        if num_dropped:
            self._index.drop(num_dropped)
        self.tokens.extend(kept)
        self.tokens.append(END_OF_OUTPUT)
        self._index.extend()

    def find(self, context: list[int]) -> tuple[int, list[int]]:
        """Match the end of ``context``; see ``NgramIndex.find``."""
        return self._index.find(context)
