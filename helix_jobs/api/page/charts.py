"""Charts of a batch: how many tokens a second it made over its time, and how long its answers are. Pure.

They are geometry for a template, in a box of 600 by 160 units. The words beside them say the same, for whoever does not
see them.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from helix_jobs.wording import counted, duration, rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.storage.answer_sample import AnswerSample

WIDTH: Final = 600
HEIGHT: Final = 160
_COLUMNS: Final = 40
_GAP: Final = 2
_LEAST_ANSWERS: Final = 2
_NICE: Final = (1, 2, 5, 10)
_HALF: Final = 0.5
_MOST: Final = 0.9


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        x: Its left edge.
        y: Its upper edge.
        width: Its width.
        height: Its height.
        words: What it says.
    """

    x: float
    y: float
    width: float
    height: float
    words: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis.

    Attributes:
        at: Where, in units from the left, or from above.
        words: What stands there.
    """

    at: float
    words: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of columns.

    Attributes:
        title: What it shows, with the unit.
        words: What it says, in a sentence.
        columns: From left to right.
        ticks_x: Marks below.
        ticks_y: Marks at the left, from below.
    """

    title: str
    words: str
    columns: tuple[Column, ...]
    ticks_x: tuple[Tick, ...]
    ticks_y: tuple[Tick, ...]


def throughput_chart(sample: AnswerSample) -> Chart | None:
    """Tokens a second, by when answers ended; None where there are too few answers."""
    answers = sample.answers
    if len(answers) < _LEAST_ANSWERS:
        return None
    begun = answers[0].created_at
    spent = (answers[-1].created_at - begun).total_seconds()
    if spent <= 0:
        return None
    # Fewer answers make fewer columns, so that a column is more than chance.
    count = max(2, min(_COLUMNS, len(answers) // 4))
    width = spent / count
    tokens = [0] * count
    for answer in answers:
        place = int((answer.created_at - begun).total_seconds() / width)
        tokens[min(place, count - 1)] += answer.tokens * sample.step
    rates = [number / width for number in tokens]
    words = [
        f"{rate(value)} tokens/s from {duration(place * width)} to {duration((place + 1) * width)}"
        for place, value in enumerate(rates)
    ]
    mean = sum(tokens) / spent
    return Chart(
        title="Tokens per second",
        words=f"{rate(mean)} tokens/s on average over {duration(spent)}, at most {rate(max(rates))}.",
        columns=_columns(rates, words),
        ticks_x=(Tick(0, "start"), Tick(WIDTH / 2, duration(spent / 2)), Tick(WIDTH, duration(spent))),
        ticks_y=_heights(max(rates)),
    )


def length_chart(sample: AnswerSample) -> Chart | None:
    """How many answers have how many tokens; None where there are too few answers."""
    lengths = sorted(answer.tokens for answer in sample.answers)
    if len(lengths) < _LEAST_ANSWERS:
        return None
    step = max(1, nice_step(lengths[-1] / _COLUMNS))
    count = lengths[-1] // step + 1
    found = Counter(length // step for length in lengths)
    shares = [100 * found[place] / len(lengths) for place in range(count)]
    words = [f"{share:.1f} % of the answers have {_span(place * step, step)}" for place, share in enumerate(shares)]
    longest = count * step
    return Chart(
        title="Length of answers, in tokens",
        words=(
            f"Half of the answers have at most {counted(_quantile(lengths, _HALF), 'token')}, nine of ten at most "
            f"{counted(_quantile(lengths, _MOST), 'token')}, the longest {counted(lengths[-1], 'token')}."
        ),
        columns=_columns(shares, words),
        ticks_x=(Tick(0, "0"), Tick(WIDTH / 2, f"{longest // 2:,}"), Tick(WIDTH, f"{longest:,}")),
        ticks_y=_heights(max(shares), " %"),
    )


def nice_step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 and so on that is not below ``least``."""
    if least <= 1:
        return 1
    power = 10 ** int(math.log10(least))
    return int(next(step * power for step in _NICE if step * power >= least))


def _columns(values: Sequence[float], words: Sequence[str]) -> tuple[Column, ...]:
    top = _top(max(values))
    width = WIDTH / len(values)
    gap = min(_GAP, width / 4)
    found = []
    for place, (value, text) in enumerate(zip(values, words, strict=True)):
        height = round(HEIGHT * value / top, 1)
        found.append(Column(round(place * width + gap / 2, 2), HEIGHT - height, round(width - gap, 2), height, text))
    return tuple(found)


def _heights(highest: float, unit: str = "") -> tuple[Tick, ...]:
    top = _top(highest)
    return tuple(Tick(HEIGHT * (1 - part), _short(top * part) + unit) for part in (0, 0.5, 1))


def _top(highest: float) -> float:
    """Where the scale ends: a round number above the highest column."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= highest)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= _NICE[-1] or value == int(value) else f"{value:.2g}"


def _span(first: int, step: int) -> str:
    return counted(first, "token") if step == 1 else f"{first:,} to {first + step - 1:,} tokens"


def _quantile(ordered: Sequence[int], part: float) -> int:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
