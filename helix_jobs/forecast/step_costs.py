"""StepCosts: what steps of an engine took, by the number of sequences that decoded in them."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from helix_jobs.engine.protocol import EngineCounters

# Sizes up to this stand for themselves; above it neighbours share an entry.
_EXACT: Final = 8
# Entries of larger sizes lie this far apart, as a logarithm.
_APART: Final = 0.12


@dataclass(slots=True)
class SizeCost:
    """Sums over the steps of one size and kind.

    Attributes:
        steps: How many there were.
        decodes: Sequences that decoded, summed.
        seconds: Their time.
        tokens: What they emitted.
        prompt_tokens: Prompt tokens that they computed.
    """

    steps: int = 0
    decodes: int = 0
    seconds: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0

    def add(self, other: SizeCost) -> None:
        """Add the sums of ``other``."""
        self.steps += other.steps
        self.decodes += other.decodes
        self.seconds += other.seconds
        self.tokens += other.tokens
        self.prompt_tokens += other.prompt_tokens


class StepCosts:
    """Sums of steps, by size.

    Attributes:
        decoding: Size -> the steps in which every sequence decoded.
        mixed: Size -> the steps in which some sequence read its prompt.
    """

    def __init__(self) -> None:
        self.decoding: dict[int, SizeCost] = {}
        self.mixed: dict[int, SizeCost] = {}

    def add_step(self, before: EngineCounters, after: EngineCounters, seconds: float) -> None:
        """Count what an engine did between two readings of its counters, mostly one step."""
        steps = after.steps - before.steps
        if steps < 1:
            return
        decodes = after.decode_sequence_steps - before.decode_sequence_steps
        sequences = after.sequence_steps - before.sequence_steps
        computed = after.prompt_tokens - before.prompt_tokens
        computed -= after.cached_prompt_tokens - before.cached_prompt_tokens
        kind = self.decoding if decodes == sequences and not computed else self.mixed
        kind.setdefault(_size(decodes / steps), SizeCost()).add(
            SizeCost(steps, decodes, seconds, after.completion_tokens - before.completion_tokens, max(computed, 0))
        )

    @property
    def seconds(self) -> float:
        """The time of all steps."""
        return sum(one.seconds for kind in (self.decoding, self.mixed) for one in kind.values())

    @classmethod
    def merged(cls, parts: Iterable[StepCosts]) -> StepCosts:
        """The sums over several stretches of time."""
        whole = cls()
        for part in parts:
            for mine, theirs in ((whole.decoding, part.decoding), (whole.mixed, part.mixed)):
                for size, cost in theirs.items():
                    mine.setdefault(size, SizeCost()).add(cost)
        return whole

    def to_json(self) -> dict[str, list[list[float]]]:
        """As JSON for a column: for each kind, lists of size, steps, decodes, seconds, tokens and prompt tokens."""
        return {
            name: [
                [size, one.steps, one.decodes, round(one.seconds, 6), one.tokens, one.prompt_tokens]
                for size, one in sorted(kind.items())
            ]
            for name, kind in (("decoding", self.decoding), ("mixed", self.mixed))
        }

    @classmethod
    def from_json(cls, stored: Any) -> StepCosts:  # noqa: ANN401  (a column that somebody may have changed by hand)
        """Read what ``to_json`` wrote; what cannot be read counts as nothing measured."""
        found = cls()
        try:
            for name, kind in (("decoding", found.decoding), ("mixed", found.mixed)):
                for size, steps, decodes, seconds, tokens, prompt_tokens in stored.get(name, ()):
                    cost = SizeCost(int(steps), int(decodes), float(seconds), int(tokens), int(prompt_tokens))
                    if cost.steps < 1:
                        return cls()
                    kind.setdefault(int(size), SizeCost()).add(cost)
        except (AttributeError, OverflowError, TypeError, ValueError):
            return cls()
        return found


def _size(decodes: float) -> int:
    """The entry that a number of sequences belongs to."""
    if decodes <= _EXACT:
        return round(decodes)
    return round(_EXACT * exp(round(log(decodes / _EXACT) / _APART) * _APART))
