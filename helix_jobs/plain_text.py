"""Plain text: how a stranger's text is shown, so that it neither forges lines nor controls what shows it. Pure."""

from __future__ import annotations

import json
import unicodedata
from typing import Final

# Unicode categories: control, format, line and paragraph separator, half of a surrogate pair.
_UNSEEN: Final = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
_HARMLESS_IN_TEXT: Final = frozenset("\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}")


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
