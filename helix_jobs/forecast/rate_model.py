"""RateModel: seconds that work takes with so many sequences at once, from steps that were measured."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from math import log, sqrt
from typing import TYPE_CHECKING, Final

from helix_jobs.forecast.step_costs import SizeCost, StepCosts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# How much the speed of a machine changes from one hour to the next although nothing is known to have changed: the
# standard deviation of its logarithm.
# Trade-off: a larger value is right more often when other programs come and go, and says less on a quiet machine.
DRIFT: Final = 0.04
# How much the speed of one second differs from the mean, likewise; of a minute it is an eighth of that.
GUSTS: Final = 0.25
# The share of a full step that a step of one sequence is taken to cost where only full steps were seen.
_FIXED_SHARE: Final = 0.4
# Measured stretches are not independent: a slow minute is followed by another slow one.
_INDEPENDENT: Final = 4


@dataclass(frozen=True)
class RateModel:
    """How fast an engine is.

    Attributes:
        token_seconds: Sequences at once -> seconds until each of them has one more token; at least one entry.
        prompt_token_seconds: Seconds of a prompt token that is computed.
        spread: Standard deviation of the logarithm of the speed, as it is unknown for the time to come.
        free_tokens: Tokens of an answer that come with its prompt: the step that ends a prompt emits one.
    """

    token_seconds: Mapping[int, float]
    prompt_token_seconds: float
    spread: float
    free_tokens: int = 1

    @classmethod
    def of(cls, stretches: Sequence[StepCosts]) -> RateModel | None:
        """Fit to stretches of measured steps; None where nothing was measured."""
        whole = StepCosts.merged(stretches)
        decoding = {size: one for size, one in whole.decoding.items() if size and one.decodes}
        if not decoding:
            # Every step read a prompt, so the time of tokens cannot be told from that of prompts.
            decoding = {size: one for size, one in whole.mixed.items() if size and one.tokens}
            if not decoding:
                return _prompts_alone(whole)
            step_seconds, prompt_seconds = _smoothed(decoding), 0.0
        else:
            step_seconds = _smoothed(decoding)
            prompt_seconds = _prompt_seconds(whole, step_seconds)
        emitted = sum(one.tokens for one in decoding.values())
        # Tokens of a sequence in a step, where a size has emitted nothing.
        usual = (emitted or 1) / sum(one.decodes for one in decoding.values())
        token_seconds = {
            size: step_seconds[size] / (one.tokens / one.decodes if one.tokens else usual)
            for size, one in decoding.items()
        }
        model = cls(_never_falling(token_seconds, decoding), prompt_seconds, DRIFT)
        return model.scaled(1.0, sqrt(DRIFT**2 + model._unrest(stretches, usual) ** 2))

    @classmethod
    def of_slots(cls, slots: int, token_seconds: float, spread: float = 2 * DRIFT) -> RateModel:
        """From the time of a token where ``slots`` sequences were always under way."""
        alone = token_seconds * (_FIXED_SHARE + (1 - _FIXED_SHARE) / slots)
        sizes = {1: alone, slots: token_seconds} if slots > 1 else {1: token_seconds}
        return cls(sizes, 0.0, spread, free_tokens=0)

    def scaled(self, factor: float, spread: float | None = None) -> RateModel:
        """The same shape, slower by ``factor``."""
        token_seconds = {size: seconds * factor for size, seconds in self.token_seconds.items()}
        return RateModel(
            token_seconds,
            self.prompt_token_seconds * factor,
            self.spread if spread is None else spread,
            self.free_tokens,
        )

    def slot_seconds(self, sequences: int, *, answers: int, tokens: int, prompt_tokens: int) -> float:
        """Seconds that jobs spend in their slots together, while so many sequences are always under way.

        Each of them stands still while the prompt of any other is read.

        Args:
            sequences: How many run at once.
            answers: Answers.
            tokens: Of all of them.
            prompt_tokens: Prompt tokens that are computed for them.
        """
        decoding = max(tokens - self.free_tokens * answers, 0) * self.at(sequences)
        return decoding + sequences * prompt_tokens * self.prompt_token_seconds

    def together(self, engines: int) -> RateModel:
        """So many engines like this one, which share the work."""
        token_seconds = {size * engines: seconds for size, seconds in self.token_seconds.items()}
        return RateModel(token_seconds, self.prompt_token_seconds / engines, self.spread, self.free_tokens)

    def at(self, sequences: int) -> float:
        """Seconds until each of so many sequences has one more token: between measured sizes on a straight line."""
        sizes, seconds = self._points
        place = bisect_left(sizes, sequences)
        if place == 0:
            return seconds[0]
        if place == len(sizes):
            if len(sizes) == 1:
                return seconds[0] * (_FIXED_SHARE + (1 - _FIXED_SHARE) * sequences / sizes[0])
            slope = max(0.0, seconds[-1] - seconds[0]) / (sizes[-1] - sizes[0])
            return seconds[-1] + slope * (sequences - sizes[-1])
        low, high = sizes[place - 1], sizes[place]
        share = (sequences - low) / (high - low)
        return seconds[place - 1] + share * (seconds[place] - seconds[place - 1])

    @cached_property
    def _points(self) -> tuple[list[int], list[float]]:
        sizes = sorted(self.token_seconds)
        return sizes, [self.token_seconds[size] for size in sizes]

    def _unrest(self, stretches: Sequence[StepCosts], tokens_of_step: float) -> float:
        """How far the mean speed of the measured stretches may lie from the truth, as a logarithm."""
        logs, weights = [], []
        for one in stretches:
            expected = self._expected(one, tokens_of_step)
            if expected > 0 and one.seconds > 0:
                logs.append(log(one.seconds / expected))
                weights.append(one.seconds)
        if len(logs) < 2:  # noqa: PLR2004  (one value has no deviation)
            return DRIFT
        mean = sum(w * x for w, x in zip(weights, logs, strict=True)) / sum(weights)
        variance = sum(w * (x - mean) ** 2 for w, x in zip(weights, logs, strict=True)) / sum(weights)
        return sqrt(variance * min(1.0, _INDEPENDENT / len(logs)))

    def _expected(self, stretch: StepCosts, tokens_of_step: float) -> float:
        """Seconds that the model gives a stretch in which a sequence gains so many tokens a step."""
        return sum(
            (self.at(size) * tokens_of_step * one.steps if size else 0.0)
            + self.prompt_token_seconds * one.prompt_tokens
            for kind in (stretch.decoding, stretch.mixed)
            for size, one in kind.items()
        )


def _prompts_alone(whole: StepCosts) -> RateModel | None:
    """Of work that emits at most one token a prompt."""
    prompt_tokens = sum(one.prompt_tokens for one in whole.mixed.values())
    if not prompt_tokens:
        return None
    return RateModel({1: 0.0}, whole.seconds / prompt_tokens, 2 * DRIFT)


def _prompt_seconds(whole: StepCosts, step_seconds: Mapping[int, float]) -> float:
    """What is left of mixed steps when their decoding is taken off, over the prompt tokens that they computed."""
    shape = RateModel(step_seconds, 0.0, 0.0)
    prompt_tokens = sum(one.prompt_tokens for one in whole.mixed.values())
    left = sum(one.seconds - (one.steps * shape.at(size) if size else 0.0) for size, one in whole.mixed.items())
    return max(0.0, left) / prompt_tokens if prompt_tokens else 0.0


def _smoothed(costs: Mapping[int, SizeCost]) -> dict[int, float]:
    """Size -> seconds of a step."""
    return _never_falling({size: one.seconds / one.steps for size, one in costs.items()}, costs)


def _never_falling(values: Mapping[int, float], costs: Mapping[int, SizeCost]) -> dict[int, float]:
    """The nearest values that do not fall with the size: neighbours that do share their mean, weighed by steps."""
    blocks: list[tuple[float, int, list[int]]] = []
    for size in sorted(values):
        value, weight, sizes = values[size], costs[size].steps, [size]
        while blocks and blocks[-1][0] > value:
            before, weighed, others = blocks.pop()
            value = (value * weight + before * weighed) / (weight + weighed)
            weight, sizes = weight + weighed, others + sizes
        blocks.append((value, weight, sizes))
    return {size: value for value, _, sizes in blocks for size in sizes}
