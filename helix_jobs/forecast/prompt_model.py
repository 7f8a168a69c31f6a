"""PromptModel: how many prompt tokens a job computes, told from the size of its request."""

from __future__ import annotations

from statistics import StatisticsError, fmean, linear_regression
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

# Before anything is seen of how they differ, larger requests are taken to have as many tokens a character as all, give
# or take this share.
_PRIOR: Final = 0.3
# Few tokens are shorter than a character.
_MOST_SLOPE: Final = 1.0


class PromptModel:
    """A line through what was seen: so many tokens beside the text, and so many for each character of it.

    Its slope is the mean of two, each weighed by how well it is known: the least squares' of what was seen, and that of
    a line through nothing. Requests of one size have any slope, and say nothing of much longer ones.

    Args:
        seen: The size of each request in characters, and the prompt tokens that were computed for it.
    """

    def __init__(self, seen: Sequence[tuple[int, int]]) -> None:
        self._size = fmean(size for size, _ in seen) if seen else 0.0
        self._tokens = fmean(tokens for _, tokens in seen) if seen else 0.0
        mean = self._tokens / self._size if self._size else 0.0
        self._slope = min(max(_slope(seen, self._size, mean), 0.0), _MOST_SLOPE)

    def computed(self, size: int) -> int:
        """Prompt tokens of a request of so many characters."""
        return max(0, round(self._tokens + self._slope * (size - self._size)))


def _slope(seen: Sequence[tuple[int, int]], middle: float, mean: float) -> float:
    spread = sum((size - middle) ** 2 for size, _ in seen)
    try:
        line = linear_regression(*zip(*seen, strict=True))
    except (StatisticsError, TypeError):  # fewer than two requests, or all of one size
        return mean
    if len(seen) < 3 or not mean:  # noqa: PLR2004  (a line through two points leaves no error to see)
        return mean
    left = sum((tokens - line.slope * size - line.intercept) ** 2 for size, tokens in seen)
    variance = left / (len(seen) - 2) / spread
    prior = (_PRIOR * mean) ** 2
    return (line.slope * prior + mean * variance) / (prior + variance)
