"""Consoles, and how times appear on a terminal. Pure except for the consoles."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import Console, RenderableType
    from rich.status import Status

# Wide enough that a table in a pipe is never cut; trailing blanks are removed.
_PIPE_WIDTH: Final = 10_000


def make_console(*, stderr: bool = False) -> Console:
    """A console that prints text literally (no markup, no emoji codes) and does not wrap lines in a pipe."""
    from rich.console import Console

    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=_PIPE_WIDTH)
    return console


def is_interactive(console: Console) -> bool:
    """Whether a live display makes sense: a real terminal that can move its cursor."""
    return console.is_terminal and not console.is_dumb_terminal


def working(console: Console, text: str) -> Status:
    """A line with a spinner that shows the current step; start, update and stop it."""
    # Rich checks the encoding for boxes and bars, not for spinners.
    return console.status(text, spinner="dots" if console.encoding.startswith("utf") else "line")


def show(console: Console, renderable: RenderableType) -> None:
    """Print a table or text; in a pipe, without the blanks that pad a table on a terminal."""
    if console.is_terminal:
        console.print(renderable)
        return
    with console.capture() as capture:
        console.print(renderable)
    for line in capture.get().splitlines():
        console.print(line.rstrip(), soft_wrap=True)


def clock_time(moment: datetime) -> str:
    """A stored UTC time in the local time zone."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def timestamp(moment: datetime | None) -> str | None:
    """A stored time for programs: ISO 8601 in UTC."""
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
