"""StepCosts: what a step of the target and a pass of the draft model cost on this machine. No torch."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

logger = logging.getLogger(__name__)

# 1 could hold the first, cold run of a shape.
_FORMAT_VERSION: Final = 2
# One observation moves a logarithm by at most gain * limit: 4 % for the machine's speed, 3 % for a point of a curve. A
# single outlier (page faults, a moment off the processor) hardly counts. Surprises that persist raise the gain of a
# curve, at most to 1 + boost times. Trade-off: smaller gains resist outliers longer and follow a real change later
# (here a factor of two takes some 20 steps).
_SURPRISE_LIMIT: Final = 0.4
_SPEED_GAIN: Final = 0.1
_CORRECTION_GAIN: Final = 0.05
_TREND_GAIN: Final = 0.1
_TREND_BOOST: Final = 4.0
_CORRECTION_LIMIT: Final = math.log(16)
# Curves get points up to here: more tokens than a step or a catch-up has.
_FARTHEST_POINT: Final = 4096
# Each observation fades every correction by this fraction (half gone after some 1,000 steps). A point that looked too
# expensive is not used, so only fading lets the engine find out that it has become cheap.
_FORGETTING: Final = 0.0007


@dataclass(frozen=True, slots=True, kw_only=True)
class CostProfile:
    """Measured costs, from a short profile at start-up or from a cache file.

    Attributes:
        target: ``(packed tokens, seconds)`` of whole steps of the target, scheduling and sampling included, by
            ascending token count.
        draft: The same for single passes of the draft model; empty without one.
        sequence_seconds: Seconds that each decoding sequence adds to a target step for reading its cache, whatever its
            number of tokens. 0.0 leaves them in ``target``.

    Raises:
        ValueError: No target point, or a figure that is not positive and finite.
    """

    target: tuple[tuple[int, float], ...]
    draft: tuple[tuple[int, float], ...] = ()
    sequence_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not self.target:
            raise ValueError("a cost profile has at least one target point")
        for points in (self.target, self.draft):
            tokens = [count for count, _ in points]
            if tokens != sorted(set(tokens)) or (tokens and tokens[0] < 1):
                raise ValueError("token counts are positive and ascend")
            if not all(math.isfinite(seconds) and seconds > 0 for _, seconds in points):
                raise ValueError("seconds are positive and finite")
        if not (math.isfinite(self.sequence_seconds) and self.sequence_seconds >= 0):
            raise ValueError("seconds a sequence are finite and not negative")

    @classmethod
    def from_measurements(
        cls, target: Mapping[int, float], draft: Mapping[int, float] | None = None, sequence_seconds: float = 0.0
    ) -> Self:
        """Build from mappings of token count to seconds, in any order.

        Raises:
            ValueError: See the class.
        """
        return cls(
            target=tuple(sorted(target.items())),
            draft=tuple(sorted((draft or {}).items())),
            sequence_seconds=sequence_seconds,
        )

    def to_dict(self, identity: Mapping[str, str]) -> dict[str, object]:
        """A JSON object. ``identity`` says where the figures apply: device, models, dtype, threads, torch version."""
        return {
            "version": _FORMAT_VERSION,
            "identity": dict(identity),
            "target": [list(point) for point in self.target],
            "draft": [list(point) for point in self.draft],
            "sequence_seconds": self.sequence_seconds,
        }

    @classmethod
    def from_dict(cls, data: object, identity: Mapping[str, str]) -> Self | None:
        """Read what ``to_dict`` wrote; log and return None if it is damaged or of another identity."""
        if not isinstance(data, dict) or data.get("version") != _FORMAT_VERSION:
            logger.warning("ignoring a cost profile of unknown form; costs are measured again")
            return None
        if data.get("identity") != dict(identity):
            logger.info("ignoring a cost profile of another device, model or setting; costs are measured again")
            return None
        try:
            return cls(
                target=_points(data.get("target")),
                draft=_points(data.get("draft")),
                sequence_seconds=_seconds(data.get("sequence_seconds")),
            )
        except ValueError as error:
            logger.warning("ignoring a damaged cost profile (%s); costs are measured again", error)
            return None


class CostCurve:
    """Seconds as a function of tokens: straight lines between measured points, never falling.

    A point's value is its measured seconds times a *correction* that observations move. Where points contradict each
    other, those observed more often and more recently prevail. Below the first point the curve is flat: reading the
    weights takes constant time. Past the last measured point, points are added at each doubling, proportional to tokens
    until observations correct them: a curve that ends while flat does not show where it turns up.

    Args:
        points: ``(tokens, seconds)`` by ascending token count, at least one.
    """

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        points = list(points)
        while points[-1][0] < _FARTHEST_POINT:
            points.append((2 * points[-1][0], 2 * points[-1][1]))
        self._tokens = [tokens for tokens, _ in points]
        self._measured = [seconds for _, seconds in points]
        # Logarithms, one a point.
        self._corrections = [0.0] * len(points)
        # Observations behind each point's value: the profile counts as one.
        self._weights = [1.0] * len(points)
        # Recent mean surprise.
        self._trend = 0.0
        self._build()

    def seconds(self, tokens: int) -> float:
        """Seconds for ``tokens`` tokens; 0.0 for none."""
        if tokens <= 0:
            return 0.0
        intercept, slope = self._lines[bisect_left(self._tokens, tokens)]
        return intercept + slope * tokens

    def correct(self, shares: Mapping[int, float], surprise: float) -> None:
        """Move the corrections after an observation, and fade all of them a little.

        The update is normalised least mean squares: sizes that took more of the time are corrected more.

        Args:
            shares: Token count -> fraction of the expected time that passes of this size take; they sum to 1.
            surprise: Logarithm of observed over expected seconds, limited.
        """
        self._corrections = [correction * (1 - _FORGETTING) for correction in self._corrections]
        self._weights = [1 + (weight - 1) * (1 - _FORGETTING) for weight in self._weights]
        self._trend += _TREND_GAIN * (surprise - self._trend)
        persistence = max(0.0, self._trend * math.copysign(1.0, surprise)) / _SURPRISE_LIMIT
        amount = _CORRECTION_GAIN * (1 + _TREND_BOOST * persistence) * surprise
        power = sum(share * share for share in shares.values())
        for tokens, share in shares.items():
            above = bisect_left(self._tokens, tokens)
            if above == 0 or above == len(self._tokens):
                self._shift(min(above, len(self._tokens) - 1), amount * share / power, share)
                continue
            low, high = self._tokens[above - 1], self._tokens[above]
            nearness = (tokens - low) / (high - low)
            self._shift(above - 1, amount * share / power * (1 - nearness), share * (1 - nearness))
            self._shift(above, amount * share / power * nearness, share * nearness)
        self._build()

    def points(self) -> list[tuple[int, float]]:
        """The present ``(tokens, seconds)``."""
        return list(zip(self._tokens, self._values, strict=True))

    def _shift(self, index: int, amount: float, weight: float) -> None:
        self._weights[index] += weight
        moved = self._corrections[index] + amount
        self._corrections[index] = max(-_CORRECTION_LIMIT, min(_CORRECTION_LIMIT, moved))

    def _build(self) -> None:
        """Line ``i`` serves token counts up to point ``i``; one more serves those past the last point."""
        corrected = [s * math.exp(c) for s, c in zip(self._measured, self._corrections, strict=True)]
        self._values = _monotone(corrected, self._weights)
        # (intercept, slope): flat up to the first point.
        self._lines = [(self._values[0], 0.0)]
        for index in range(1, len(self._tokens)):
            low, high = self._tokens[index - 1], self._tokens[index]
            slope = (self._values[index] - self._values[index - 1]) / (high - low)
            self._lines.append((self._values[index] - slope * high, slope))
        self._lines.append((0.0, self._values[-1] / self._tokens[-1]))


class StepCosts:
    """Costs of target steps and draft passes, from a profile, refined by every step that runs.

    The machine's present *speed* (other programs, clock, heat) is one factor common to all costs. It follows target
    steps quickly: the engine sees few token counts for long stretches, and a change of speed must not make the other
    counts look cheap or expensive. Remaining differences are corrected slowly, point by point.
    """

    def __init__(self, profile: CostProfile) -> None:
        self._target = CostCurve(profile.target)
        self._draft = CostCurve(profile.draft) if profile.draft else None
        self._sequence_seconds = profile.sequence_seconds
        self._log_speed = 0.0
        self._factor = 1.0
        self._draft_seconds_spent = 0.0

    @property
    def draft_seconds_spent(self) -> float:
        """Seconds that all observed passes of the draft model took."""
        return self._draft_seconds_spent

    @property
    def has_draft(self) -> bool:
        """Whether the draft model's costs are known."""
        return self._draft is not None

    def target_seconds(self, tokens: int, sequences: int = 0) -> float:
        """Seconds of one target step over ``tokens`` packed tokens, ``sequences`` of them decoding."""
        return self._factor * (self._target.seconds(tokens) + self._sequence_seconds * sequences)

    def draft_seconds(self, tokens: int) -> float:
        """Seconds of one draft-model pass over ``tokens`` packed tokens. Needs ``has_draft``."""
        assert self._draft is not None, "a draft model is profiled before it is used"
        return self._factor * self._draft.seconds(tokens)

    def observe_target(self, tokens: int, seconds: float, *, sequences: int = 0) -> None:
        """Learn from one whole step, the draft model's time excluded."""
        surprise = _surprise(seconds, self.target_seconds(tokens, sequences))
        if surprise is None:
            return
        self._follow_speed(surprise)
        self._target.correct({tokens: 1.0}, surprise)

    def observe_draft(self, passes: Iterable[int], seconds: float) -> None:
        """Learn from one or more draft passes that took ``seconds`` together; ``passes`` are their token counts.

        Updates only the draft's curve. If it also moved the shared speed factor, draft and target timings would keep
        correcting each other.
        """
        if self._draft is None:
            return
        expected: dict[int, float] = {}
        for tokens in passes:
            if tokens > 0:
                expected[tokens] = expected.get(tokens, 0.0) + self.draft_seconds(tokens)
        total = sum(expected.values())
        surprise = _surprise(seconds, total)
        if surprise is None:
            return
        self._draft_seconds_spent += seconds
        self._draft.correct({tokens: part / total for tokens, part in expected.items()}, surprise)

    def observe_together(self, tokens: int, passes: Iterable[int], seconds: float, *, sequences: int = 0) -> None:
        """Learn from one step whose draft passes cannot be timed apart from the target's.

        The surprise is divided in proportion to the expected times. Trade-off: if one expectation was wrong, the sum
        is corrected at once, the parts only by steps that draft less; timing them apart would need another wait.

        Args:
            tokens: Packed tokens of the target's pass.
            passes: Packed tokens of each pass of the draft model.
            seconds: Time of all these passes together.
            sequences: Sequences that decoded.
        """
        if self._draft is None:
            return
        expected: dict[int, float] = {}
        for count in passes:
            expected[count] = expected.get(count, 0.0) + self.draft_seconds(count)
        target, draft = self.target_seconds(tokens, sequences), sum(expected.values())
        surprise = _surprise(seconds, target + draft)
        if surprise is None:
            return
        share = draft / (target + draft)
        self._draft_seconds_spent += share * seconds
        self._follow_speed((1 - share) * surprise)
        self._target.correct({tokens: 1.0}, (1 - share) * surprise)
        self._draft.correct({count: part / draft for count, part in expected.items()}, share * surprise)

    def profile(self) -> CostProfile:
        """The present costs, speed included."""
        return CostProfile(
            target=tuple((tokens, self._factor * seconds) for tokens, seconds in self._target.points()),
            draft=tuple(
                (tokens, self._factor * seconds) for tokens, seconds in (self._draft.points() if self._draft else ())
            ),
            sequence_seconds=self._factor * self._sequence_seconds,
        )

    def _follow_speed(self, surprise: float) -> None:
        self._log_speed += _SPEED_GAIN * surprise
        self._factor = math.exp(self._log_speed)


def _surprise(seconds: float, expected: float) -> float | None:
    """Logarithm of observed over expected, limited; None for an impossible figure (a clock set back)."""
    if not (math.isfinite(seconds) and seconds > 0 and expected > 0):
        return None
    return max(-_SURPRISE_LIMIT, min(_SURPRISE_LIMIT, math.log(seconds / expected)))


def _monotone(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls, by weighted least squares (pool adjacent violators).

    Noise on a flat curve is averaged; a running maximum would make each point as expensive as the worst before it.
    """
    # Pools of neighbours that share a value: [value, weight, count].
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            before = pools.pop()
            total = before[1] + pool[1]
            pool = ((before[0] * before[1] + pool[0] * pool[1]) / total, total, before[2] + pool[2])
        pools.append(pool)
    return [value for value, _, count in pools for _ in range(count)]


def _points(data: object) -> tuple[tuple[int, float], ...]:
    if not isinstance(data, list):
        raise ValueError("points are a list")  # noqa: TRY004  (one kind of error for every damage)
    points = []
    for pair in data:
        if not isinstance(pair, list) or len(pair) != 2 or type(pair[0]) is not int:  # noqa: PLR2004  (a pair)
            raise ValueError("a point is a token count and its seconds")
        points.append((pair[0], _seconds(pair[1])))
    return tuple(points)


def _seconds(data: object) -> float:
    if isinstance(data, bool) or not isinstance(data, int | float):
        raise ValueError("seconds are a number")  # noqa: TRY004  (one kind of error for every damage)
    try:
        return float(data)
    except OverflowError:
        raise ValueError("seconds are finite") from None
