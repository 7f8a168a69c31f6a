"""Percentiles: the three points of a distribution that a bench prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Median, 90th and 99th percentile, in the unit of the values."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles | None:
        """The percentiles of the values; None of none."""
        if not values:
            return None
        ordered = sorted(values)
        return cls(percentile(ordered, 0.5), percentile(ordered, 0.9), percentile(ordered, 0.99))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of the ascending values lie, interpolated linearly (NumPy's default).

    Trade-off: ``statistics.quantiles`` would save these lines, but its rounding puts some of them outside the values.
    """
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
