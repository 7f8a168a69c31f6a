"""Charts as geometry for a template: columns, alone or stacked, in a box of 600 by 160 units. Pure.

Each column says what it shows in words, for whoever points at it and for whoever does not see it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH: Final = 600
HEIGHT: Final = 160
_GAP: Final = 2
_NICE: Final = (1, 2, 5, 10)
_TOPS: Final = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
_LARGE: Final = 10


@dataclass(frozen=True, slots=True)
class Bar:
    """A column, or a part of one.

    Attributes:
        x: Its left edge.
        y: Its upper edge.
        width: Its width.
        height: Its height.
        series: The place of what it shows in the legend.
        words: What it says.
    """

    x: float
    y: float
    width: float
    height: float
    series: int
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
    """A chart.

    Attributes:
        title: What it shows, with the unit.
        words: What it says, in a sentence.
        bars: Its columns.
        ticks_x: Three marks below.
        ticks_y: Marks at the left, from below.
        legend: What its series are; empty where there is one.
    """

    title: str
    words: str
    bars: tuple[Bar, ...]
    ticks_x: tuple[Tick, ...]
    ticks_y: tuple[Tick, ...]
    legend: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Series:
    """Values of one kind, from left to right, with what each says; None where there is none."""

    name: str
    values: Sequence[float | None]
    words: Sequence[str]


def chart(
    title: str, words: str, *series: Series, ticks_x: tuple[str, str, str], unit: str = "", top: float | None = None
) -> Chart:
    """A chart of columns, one upon the other where there are several series.

    Args:
        title: What it shows, with the unit.
        words: What it says.
        series: Of equal length.
        ticks_x: What stands at the left, in the middle and at the right.
        unit: Stands behind the marks at the left.
        top: Where the scale ends; by default at a round number above the highest column.
    """
    columns = list(zip(*(one.values for one in series), strict=True))
    highest = max((sum(value or 0.0 for value in column) for column in columns), default=0.0)
    scale = top or _top(highest)
    width = WIDTH / max(1, len(columns))
    gap = min(_GAP, width / 4)
    bars = []
    for place, column in enumerate(columns):
        below = 0.0
        for number, value in enumerate(column):
            if not value:
                continue
            height = round(HEIGHT * value / scale, 2)
            x, y = place * width + gap / 2, HEIGHT - below - height
            told = series[number].words[place]
            bars.append(Bar(round(x, 2), round(y, 2), round(width - gap, 2), height, number, told))
            below += height
    return Chart(
        title=title,
        words=words,
        bars=tuple(bars),
        ticks_x=tuple(Tick(at, told) for at, told in zip((0, WIDTH / 2, WIDTH), ticks_x, strict=True)),
        ticks_y=tuple(Tick(HEIGHT * (1 - part), _short(scale * part) + unit) for part in (0, 0.5, 1)),
        legend=tuple(one.name for one in series) if len(series) > 1 else (),
    )


def nice_step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 and so on that is not below ``least``."""
    if least <= 1:
        return 1
    power = 10 ** int(math.log10(least))
    return int(next(step * power for step in _NICE if step * power >= least))


def _top(highest: float) -> float:
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next((step * power for step in _TOPS if step * power >= highest), _LARGE * power)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= _LARGE or value == int(value) else f"{value:.2g}"
