"""LengthModel: how long answers become, from answers that were seen; some of these were not seen to their end."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import groupby
from math import log
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from random import Random

# Answers that a group of limits needs to stand alone, and that a cell of prompt lengths needs within it.
_GROUP: Final = 8
_CELL: Final = 24
_MOST_CELLS: Final = 4
_LIMITS_APART: Final = 0.25
# The size of a resample, as a share of the sample. Resamples of full size differ too little: a small sample lacks the
# longest answers, and so do all resamples of it.
_RESAMPLED: Final = 0.65


@dataclass(frozen=True, slots=True)
class Answer:
    """The length of one answer.

    Attributes:
        prompt_tokens: Of its prompt, or another measure of the prompt that grows with it.
        limit: Most tokens that it may have.
        tokens: Those it has.
        ended: It ended by itself. Otherwise it was cut off, or is under way: without its limit it would be longer.
    """

    prompt_tokens: int
    limit: int
    tokens: int
    ended: bool


class LengthModel:
    """Draws lengths of answers, stratified by the limit and by the length of the prompt.

    An answer that was not seen to its end says only that it is longer. Its share goes to the longer ones of its cell
    (Kaplan and Meier's estimate, in Efron's form: redistribution to the right). Behind the longest, an answer ends with
    each token as often as answers of its cell did on average.
    """

    def __init__(self, answers: Iterable[Answer]) -> None:
        ordered = sorted(answers, key=lambda one: (_limit_group(one.limit), one.prompt_tokens))
        groups: list[list[Answer]] = []
        for _, members in groupby(ordered, key=lambda one: _limit_group(one.limit)):
            if groups and len(groups[-1]) < _GROUP:
                groups[-1] += members
            else:
                groups.append(list(members))
        if len(groups) > 1 and len(groups[-1]) < _GROUP:
            last = groups.pop()
            groups[-1] += last
        self._limits = [max(_limit_group(one.limit) for one in group) for group in groups]
        # For each group of limits: the longest prompt of each cell but the last, and the cells.
        self._groups = [_cells(sorted(group, key=lambda one: one.prompt_tokens)) for group in groups]

    def __bool__(self) -> bool:
        return bool(self._groups)

    def resampled(self, rng: Random) -> LengthModel:
        """A model of as many answers, drawn with repetition: what another sample might have shown (a bootstrap)."""
        other = object.__new__(LengthModel)
        other._limits = self._limits
        other._groups = [(bounds, [cell.resampled(rng) for cell in cells]) for bounds, cells in self._groups]
        return other

    def draw(self, rng: Random, prompt_tokens: int, limit: int, beyond: int = 0) -> int:
        """The length of an answer.

        Args:
            rng: Draws.
            prompt_tokens: Of its prompt.
            limit: Most tokens that it may have.
            beyond: Tokens that it has already.
        """
        if not self._groups:
            return limit
        place = min(bisect_left(self._limits, _limit_group(limit)), len(self._groups) - 1)
        bounds, cells = self._groups[place]
        return cells[bisect_left(bounds, prompt_tokens)].draw(rng, limit, beyond)


class _Cell:
    """Answers that are alike in limit and prompt."""

    __slots__ = ("_answers", "_ends", "_keys")

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = sorted(answers, key=lambda one: one.tokens)
        self._keys = [one.tokens for one in self._answers]
        self._ends = sum(one.ended for one in answers)

    def resampled(self, rng: Random) -> _Cell:
        return _Cell(rng.choices(self._answers, k=max(2, int(len(self._answers) * _RESAMPLED))))

    def draw(self, rng: Random, limit: int, beyond: int) -> int:
        first = bisect_right(self._keys, beyond) if beyond else 0
        while first < len(self._answers):
            found = self._answers[first + int(rng.random() * (len(self._answers) - first))]
            if found.tokens >= limit:
                return limit
            if found.ended:
                return found.tokens
            beyond = found.tokens
            first = bisect_right(self._keys, beyond)
        if not self._ends:
            return limit
        # With each token it ends as often as all of them did on average.
        return min(limit, beyond + 1 + int(rng.expovariate(self._ends / max(sum(self._keys), 1))))


def _limit_group(limit: int) -> int:
    return round(log(max(limit, 1)) / _LIMITS_APART)


def _cells(answers: Sequence[Answer]) -> tuple[list[int], list[_Cell]]:
    """Split answers, ordered by prompt, into cells of equal size; equal prompts stay together."""
    count = max(1, min(len(answers) // _CELL, _MOST_CELLS))
    bounds = sorted({answers[len(answers) * cut // count - 1].prompt_tokens for cut in range(1, count)})
    bounds = [bound for bound in bounds if bound < answers[-1].prompt_tokens]
    parts: list[list[Answer]] = [[] for _ in range(len(bounds) + 1)]
    for one in answers:
        parts[bisect_left(bounds, one.prompt_tokens)].append(one)
    return bounds, [_Cell(part) for part in parts]
