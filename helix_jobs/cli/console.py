"""Consoles, and how times and untrusted text appear on a terminal. Pure except for the consoles."""

from __future__ import annotations

import json
import os
import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import Console, RenderableType
    from rich.status import Status

# Wide enough that a table in a pipe is never cut; trailing blanks are removed.
_PIPE_WIDTH: Final = 10_000
# Unicode categories: control, format, line and paragraph separator, half of a surrogate pair.
_UNSEEN: Final = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
_HARMLESS_IN_TEXT: Final = frozenset("\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}")


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


def printable(text: str) -> str:
    """The text on one line of plain characters, so that no name or library message forges lines or controls a terminal.

    Line ends and tabs become blanks. Control, format (bidirectional, zero-width), separator and half characters are
    shown as replaced.
    """
    return text if text.isprintable() else "".join(" " if c in "\n\t" else _replace(c) for c in text)


def paragraphs(text: str) -> str:
    """Like ``printable``, for a text of several lines. Joiners stay: emoji and some scripts need them."""
    if text.isprintable():
        return text
    return "".join(c if c in _HARMLESS_IN_TEXT else _replace(c) for c in text)


def escape_in_json(text: str) -> str:
    """JSON for a terminal: unsafe characters become escapes, so a copy of the text is the same JSON."""
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(json.dumps(c)[1:-1] if c != "\n" and _is_unseen(c) else c for c in text).replace("\x7f", "\\u007f")


def shorten(text: str, limit: int) -> str:
    """The text on one line, cut after ``limit`` characters with an ellipsis."""
    flat = " ".join(paragraphs(text[: 4 * limit]).split())
    return flat if len(flat) <= limit and len(text) <= 4 * limit else f"{flat[: limit - 1].rstrip()}…"


def _replace(character: str) -> str:
    return "\N{REPLACEMENT CHARACTER}" if _is_unseen(character) else character


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN


def clock_time(moment: datetime) -> str:
    """A stored UTC time in the local time zone."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def timestamp(moment: datetime | None) -> str | None:
    """A stored time for programs: ISO 8601 in UTC."""
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
