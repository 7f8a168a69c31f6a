"""PromptModel: how many prompt tokens a job computes, told from the size of its request."""

from __future__ import annotations

from statistics import StatisticsError, fmean, linear_regression
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

# How far the tokens of a further character may lie from the mean over whole requests, as a factor.
# Trade-off: the line through requests of one size has any slope, and would say anything of much longer ones. The bounds
# hold it near the truth, and err by a third where most of each request is beside its prompt.
_LEAST_SLOPE: Final = 0.67
_MOST_SLOPE: Final = 1.5


class PromptModel:
    """A line through what was seen.

    Args:
        seen: The size of each request in characters, and the prompt tokens that were computed for it.
    """

    def __init__(self, seen: Sequence[tuple[int, int]]) -> None:
        self._size = fmean(size for size, _ in seen) if seen else 0.0
        self._tokens = fmean(tokens for _, tokens in seen) if seen else 0.0
        mean = self._tokens / self._size if self._size else 0.0
        try:
            slope = linear_regression(*zip(*seen, strict=True)).slope
        except (StatisticsError, TypeError):  # fewer than two requests, or all of one size
            slope = mean
        self._slope = min(max(slope, _LEAST_SLOPE * mean), _MOST_SLOPE * mean)

    def computed(self, size: int) -> int:
        """Prompt tokens of a request of so many characters."""
        return max(0, round(self._tokens + self._slope * (size - self._size)))
