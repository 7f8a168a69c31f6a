"""NgramIndex: where the n-grams of one text occur, updated as the text grows. No torch."""

from __future__ import annotations

from typing import Final

# The shortest match worth copying from, and the length past which a longer match says no more. Trade-off: two tokens
# match far more often than three but are right less often; the confidence tells them apart.
MIN_MATCH: Final = 2
MAX_MATCH: Final = 16
# Trade-off: more occurrences find longer matches and better counts; fewer bound the cost of frequent n-grams (newlines,
# digits). In replayed outputs 4 to 1,000 did equally well.
MAX_OCCURRENCES: Final = 8


class NgramIndex:
    """Hash chains over the n-grams of ``MIN_MATCH`` tokens, as Deflate keeps them (RFC 1951, section 4).

    A *follower* is the index of the token after an occurrence. A dictionary leads from an n-gram to its latest
    occurrence, and each occurrence leads to the one before it. Longer matches are found by comparing backwards from the
    occurrences of this chain. An n-gram is indexed once a token follows it: the end of the text never matches itself.

    Trade-off: a suffix automaton would find the longest of all matches, not of the latest ``MAX_OCCURRENCES``. But it
    costs two states a token, each with its own dictionary, and cannot forget the oldest part of its text.

    Attributes:
        tokens: The text: the owner's list, not a copy. The owner appends to it and then calls ``extend``.
    """

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        # Positions count from the first token ever added; the first ``_start`` tokens have been dropped.
        self._start = 0
        self._latest: dict[tuple[int, ...], int] = {}
        # [i]: the occurrence before the one that begins at tokens[i]; negative if there is none.
        self._previous: list[int] = []

    @property
    def num_indexed(self) -> int:
        """Number of indexed n-grams, never more than the text has tokens."""
        return len(self._previous)

    @property
    def num_entries(self) -> int:
        """Entries of dictionary and chains together, a measure of memory."""
        return len(self._latest) + len(self._previous)

    def extend(self) -> None:
        """Index the tokens appended to the text since the last call."""
        begin = len(self._previous)
        fresh = self.tokens[begin:-1]
        latest, previous = self._latest, self._previous
        columns = [fresh[offset:] for offset in range(MIN_MATCH)]
        # zip stops at the shortest column, where the last n-gram ends.
        for position, ngram in enumerate(zip(*columns, strict=False), start=self._start + begin):
            previous.append(latest.get(ngram, -1))
            latest[ngram] = position

    def drop(self, count: int) -> None:
        """Forget the first ``count`` tokens of the text and every n-gram that begins in them."""
        for index in range(min(count, len(self._previous))):
            ngram = tuple(self.tokens[index : index + MIN_MATCH])
            if self._latest[ngram] == self._start + index:  # no later occurrence
                del self._latest[ngram]
        del self.tokens[:count]
        del self._previous[:count]
        self._start += count

    def find(self, context: list[int]) -> tuple[int, list[int]]:
        """Match the end of ``context`` as far back as any occurrence allows.

        Args:
            context: At least ``MIN_MATCH`` tokens; only the last ``MAX_MATCH`` count.

        Returns:
            The number of tokens that match, and the followers of all occurrences that match as far, latest first; 0
            and an empty list when fewer than ``MIN_MATCH`` tokens match.
        """
        followers = self._followers(tuple(context[-MIN_MATCH:]))
        if not followers:
            return 0, followers
        tokens = self.tokens
        if len(context) >= MAX_MATCH:
            # A copy under way matches at full length: comparing slices first is cheaper than going token by token.
            tail = context[-MAX_MATCH:]
            full = [f for f in followers if f >= MAX_MATCH and tokens[f - MAX_MATCH : f] == tail]
            if full:
                return MAX_MATCH, full
        length = MIN_MATCH
        for token in context[-MIN_MATCH - 1 : -MAX_MATCH - 1 : -1]:
            longer = [f for f in followers if f > length and tokens[f - length - 1] == token]
            if not longer:
                break
            followers = longer
            length += 1
        return length, followers

    def _followers(self, ngram: tuple[int, ...]) -> list[int]:
        found: list[int] = []
        start, previous = self._start, self._previous
        position = self._latest.get(ngram, -1)
        while position >= start and len(found) < MAX_OCCURRENCES:
            index = position - start
            found.append(index + MIN_MATCH)
            position = previous[index]
        return found
