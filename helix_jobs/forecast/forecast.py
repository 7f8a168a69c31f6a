"""Forecast: when work will be done, and how sure that is."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import exp, sqrt
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Final

from helix_jobs.forecast.simulation import simulate

if TYPE_CHECKING:
    from helix_jobs.forecast.length_model import LengthModel
    from helix_jobs.forecast.rate_model import RateModel
    from helix_jobs.forecast.work import Work

_LOW: Final = 0.1
_HIGH: Final = 0.9
# Simulated jobs of all draws together, and the bounds of draws.
_EFFORT: Final = 300_000
_FEWEST: Final = 100
MOST_DRAWS: Final = 400


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds until the last job ends, as a distribution.

    Attributes:
        draws: Equally likely values, ascending; at least one.
        tokens: Tokens that are still to be emitted: the median.
    """

    draws: tuple[float, ...]
    tokens: int = 0

    @property
    def median(self) -> float:
        """As likely too long as too short."""
        return self._quantile(0.5)

    @property
    def low(self) -> float:
        """Nine of ten are longer."""
        return self._quantile(_LOW)

    @property
    def high(self) -> float:
        """Nine of ten are shorter."""
        return self._quantile(_HIGH)

    def probability_within(self, seconds: float) -> float:
        """How likely the work is done within so many seconds."""
        return bisect_right(self.draws, seconds) / len(self.draws)

    def scaled(self, factor: float) -> Forecast:
        """Every value times ``factor``."""
        return Forecast(tuple(value * factor for value in self.draws), self.tokens)

    def _quantile(self, share: float) -> float:
        place = share * (len(self.draws) - 1)
        low = int(place)
        high = min(low + 1, len(self.draws) - 1)
        return self.draws[low] + (place - low) * (self.draws[high] - self.draws[low])


def forecast(
    work: Work, lengths: LengthModel, rate: RateModel, seed: int = 0, *, most: int = MOST_DRAWS, gusts: float = 0.0
) -> Forecast:
    """Simulate the work many times, each time with other lengths, another sample of them and another speed.

    Args:
        work: The jobs.
        lengths: How long answers become.
        rate: How fast the engine is.
        seed: The same seed gives the same forecast.
        most: Draws at most.
        gusts: How much the speed of one second differs from the mean: the standard deviation of its logarithm. Over a
            longer time it averages out.
    """
    rng = Random(seed)  # noqa: S311  (no secret)
    count = len(work.running) + len(work.waiting)
    draws, emitted = [], []
    many = work.waiting_count / max(len(work.waiting), 1)
    for _ in range(min(most, max(_FEWEST, _EFFORT // max(count, 1)))):
        sample = lengths.resampled(rng)
        running = [
            max(1, sample.draw(rng, one.prompt_tokens, one.limit, one.done_tokens) - one.done_tokens)
            for one in work.running
        ]
        waiting = [
            (
                one.computed_tokens,
                sample.draw(rng, one.prompt_tokens, one.limit) if one.known is None else one.known,
            )
            for one in work.waiting
        ]
        seconds = simulate(running, waiting, rate, work.slots, waiting_count=work.waiting_count)
        draws.append(seconds * exp(rng.gauss(0.0, sqrt(rate.spread**2 + gusts**2 / max(seconds, 1.0)))))
        emitted.append(sum(running) + many * sum(tokens for _, tokens in waiting))
    return Forecast(tuple(sorted(draws)), round(median(emitted)))
