"""Words: how numbers, sizes, percentages, durations and moments are written, on a terminal and in the log. Pure.

Sizes count in steps of 1,000, as settings do (``HELIX_KV_CACHE_MB``), and as model hubs do.
Trade-off: some tools count memory in steps of 1,024 and show smaller figures; those are MiB and GiB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

_KILO: Final = 1_000
_MEGABYTE: Final = 1_000_000
_GIGABYTE: Final = 1_000_000_000
_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86_400
_TWO_DIGITS: Final = 10


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 job``, ``1,024 jobs``."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def data_size(size: int) -> str:
    """``812 bytes``, ``12.0 kB``, ``3.4 MB``."""
    for unit, step in (("GB", _GIGABYTE), ("MB", _MEGABYTE), ("kB", _KILO)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return counted(size, "byte")


def rough_size(size: int) -> str:
    """``12 MB``, ``3.4 GB``: for use where smaller amounts do not matter."""
    return f"{size / _GIGABYTE:.1f} GB" if size >= _GIGABYTE else f"{size / _MEGABYTE:.0f} MB"


def gigabytes(size: int) -> str:
    """``1.23 GB``: for use where nearly equal sizes are compared."""
    return f"{size / _GIGABYTE:.2f} GB"


def percent(part: float) -> str:
    """``71 %``; never rounded up to 100."""
    return f"{min(int(part * 100 + 0.5), 99) if part < 1 else 100} %"


def rate(per_second: float) -> str:
    """``8.4``, ``172``, ``1,024``: three digits say enough."""
    return f"{per_second:.1f}" if per_second < _TWO_DIGITS else f"{per_second:,.0f}"


def duration(seconds: float) -> str:
    """``0.4 s``, ``42 s``, ``3 min 05 s``, ``2 h 10 min``, ``3 d 4 h``."""
    if seconds < _TWO_DIGITS:
        return f"{max(seconds, 0.0):.1f} s"
    whole = int(seconds + 0.5)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02d} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02d} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def energy(joules: float) -> str:
    """``0.4 Wh``, ``42 Wh``, ``1.2 kWh``."""
    hours = joules / _HOUR
    return f"{rate(hours)} Wh" if hours < _KILO else f"{rate(hours / _KILO)} kWh"


def clock_time(moment: datetime, now: datetime) -> str:
    """``09:00``, and on another day than that of ``now`` ``Tue 2026-12-01 09:00``, by this machine's clock.

    Summer time may begin or end between the two, so the offset of ``now`` says nothing of ``moment``.
    """
    shown = moment.astimezone()
    return format(shown, "%H:%M" if shown.date() == now.astimezone().date() else "%a %Y-%m-%d %H:%M")
