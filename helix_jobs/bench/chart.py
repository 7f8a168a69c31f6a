"""Charts of throughput over batch size, as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from helix_jobs.bench.modes import AUTO, short_draft
from helix_jobs.errors import ConfigurationError
from helix_jobs.output_file import written_whole

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.bench.report import BenchReport

_WIDTH: Final = 760
_HEIGHT: Final = 440
_LEFT: Final = 72
_TOP: Final = 74
_BOTTOM: Final = 54
_CHARACTER: Final = 6.6  # mean width of a character in the legend's font
_ROW: Final = 20
_TICKS: Final = 5
# Okabe and Ito's colours, which colour-blind people can tell apart, without yellow, which is too pale for a line.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_SIZE: Final = f'width="{_WIDTH}" height="{_HEIGHT}"'
_FONT: Final = 'font-family="system-ui, sans-serif" font-size="12"'
_UNIT: Final = "output tokens per second"
_INK: Final = "#222222"
_MUTED: Final = "#666666"
_GRID: Final = "#e3e3e3"


@dataclass(frozen=True, slots=True)
class Series:
    """One line of the chart: median tokens/s at some batch sizes. Peers are dashed."""

    label: str
    points: tuple[tuple[int, float], ...]
    is_peer: bool = False


def chart_series(report: BenchReport) -> tuple[Series, ...]:
    """The lines: each mode, then each peer, in the order they were measured."""
    lines: dict[tuple[str, bool], list[tuple[int, float]]] = {}
    for one in report.cases:
        if one.rounds:
            mode = one.case.mode
            label = "speculation off" if mode.is_off else mode.label.replace(AUTO, "adaptive")
            lines.setdefault((_with(label, one.case.variant), False), []).append(
                (one.case.batch_size, one.tokens_per_second)
            )
    for peer in report.peers:
        if peer.tokens_per_second is not None:
            key = (_with(peer.name, peer.variant), True)
            lines.setdefault(key, []).append((peer.batch_size, peer.tokens_per_second))
    return tuple(Series(label, tuple(sorted(points)), is_peer) for (label, is_peer), points in lines.items())


def check_chart_path(path: Path) -> None:
    """Refuse a path to which the chart could not be written after the measurements.

    Raises:
        ConfigurationError: The path is not an .svg file.
    """
    if path.suffix.lower() != ".svg":
        raise ConfigurationError(f"{path} is no .svg file; name one that ends with .svg")


def write_chart(report: BenchReport, path: Path) -> None:
    """Draw the report into a file."""
    with written_whole(path) as stream:
        stream.write(draw_svg(chart_series(report), *_titles(report)).encode())


def draw_svg(series: tuple[Series, ...], title: str, subtitle: str) -> str:
    """The chart as an SVG document. Batch sizes are evenly spaced, and tokens/s start at zero."""
    batch_sizes = sorted({size for line in series for size, _ in line.points})
    highest = max((value for line in series for _, value in line.points), default=0.0)
    step = nice_step(highest)
    top_value = step * max(1, math.ceil(highest / step))
    legend = 44 + _CHARACTER * max((len(line.label) for line in series), default=0)
    right, floor = _WIDTH - legend - 24, _HEIGHT - _BOTTOM

    def x(size: int) -> float:
        return _LEFT + (right - _LEFT) * (batch_sizes.index(size) + 0.5) / len(batch_sizes)

    def y(value: float) -> float:
        return floor - (floor - _TOP) * value / top_value

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {_SIZE} {_FONT} fill="{_INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="28" font-size="16" font-weight="600">{escape(title)}</text>',
        f'<text x="{_LEFT}" y="47" fill="{_MUTED}">{escape(subtitle)}</text>',
    ]
    for number in range(round(top_value / step) + 1):
        value = number * step
        parts += [
            f'<path d="M{_LEFT} {y(value):.1f}H{right:.1f}" stroke="{_GRID if number else _MUTED}"/>',
            f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end" fill="{_MUTED}">{value:,g}</text>',
        ]
    parts += [
        f'<text x="{x(size):.1f}" y="{floor + 20}" text-anchor="middle" fill="{_MUTED}">{size}</text>'
        for size in batch_sizes
    ]
    parts += [
        f'<text x="{(_LEFT + right) / 2:.1f}" y="{floor + 42}" text-anchor="middle">batch size</text>',
        f'<text transform="translate(18 {(_TOP + floor) / 2:.1f}) rotate(-90)" text-anchor="middle">{_UNIT}</text>',
    ]
    for number, line in enumerate(series):
        dots = [(x(size), y(value)) for size, value in line.points]
        parts += _line(line, _COLOURS[number % len(_COLOURS)], dots, right + 20, _TOP + 6 + number * _ROW)
    return "\n".join([*parts, "</svg>", ""])


def nice_step(highest: float) -> float:
    """The distance of the axis' ticks: 1, 2, 2.5 or 5 times a power of ten, about five ticks in all."""
    if highest <= 0:
        return 1.0
    rough = highest / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _line(line: Series, colour: str, dots: list[tuple[float, float]], left: float, middle: float) -> list[str]:
    """The line, its dots, and its row of the legend."""
    dashes = ' stroke-dasharray="6 4"' if line.is_peer else ""
    stroke = f'fill="none" stroke="{colour}" stroke-width="2.2"{dashes}'
    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in dots)
    values = zip(line.points, dots, strict=True)
    return [
        f'<polyline points="{points}" {stroke} stroke-linejoin="round"/>',
        *(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.6" fill="{colour}"><title>{escape(line.label)}, batch {size}: '
            f"{value:,.1f} tokens/s</title></circle>"
            for (size, value), (px, py) in values
        ),
        f'<line x1="{left:.1f}" y1="{middle}" x2="{left + 24:.1f}" y2="{middle}" {stroke}/>',
        f'<text x="{left + 31:.1f}" y="{middle + 4}">{escape(line.label)}</text>',
    ]


def _titles(report: BenchReport) -> tuple[str, str]:
    target = short_draft(report.target)
    return (
        f"{report.workload['name']}: throughput over batch size",
        f"{target}, {report.dtype}, {report.device}, median of {report.workload['repeat']}",
    )


def _with(label: str, variant: str) -> str:
    return f"{label} ({variant})" if variant else label
