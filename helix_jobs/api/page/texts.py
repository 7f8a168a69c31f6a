"""Texts of prompts and answers as the page shows them: plain characters, cut between whole ones. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import regex

from helix_jobs.plain_text import paragraphs

# Characters of a text that a page shows; the whole is a link away.
SHOWN_CHARS: Final = 50_000
# A user-perceived character: a letter with its marks, an emoji with its joiners (Unicode Standard Annex 29).
_CHARACTER: Final = regex.compile(r"\X")
_LINE_END: Final = " \N{DOWNWARDS ARROW WITH CORNER LEFTWARDS} "


@dataclass(frozen=True, slots=True)
class ShownText:
    """A text, or its beginning.

    Attributes:
        text: What is shown.
        num_chars: Characters of the whole.
        is_cut: Whether it is the beginning alone.
    """

    text: str
    num_chars: int
    is_cut: bool


def shown(text: str, limit: int = SHOWN_CHARS) -> ShownText:
    """A text of several lines. Control and bidirectional characters are shown as replaced."""
    begun = cut(text, limit)
    return ShownText(paragraphs(begun), len(text), is_cut=len(begun) < len(text))


def excerpt(text: str, limit: int, *, is_cut: bool = False) -> str:
    """A text on one line: line ends are seen as arrows, and an ellipsis stands where it was cut.

    Args:
        text: The text, or its beginning.
        limit: Most characters of it that are shown.
        is_cut: Whether it goes on behind what is given.
    """
    begun = cut(text, limit)
    goes_on = is_cut or len(begun) < len(text)
    lines = begun.strip().replace("\r\n", "\n").split("\n")
    flat = _LINE_END.join(paragraphs(line.strip().replace("\t", " ")) for line in lines)
    return f"{flat.rstrip()}\N{HORIZONTAL ELLIPSIS}" if goes_on else flat


def cut(text: str, limit: int) -> str:
    """The beginning of a text, of whole characters, so that no accent and no part of an emoji is left behind.

    A character of more code points than the limit is cut all the same.
    """
    if len(text) <= limit:
        return text
    end = 0
    for character in _CHARACTER.finditer(text, 0, 2 * limit):
        if character.end() > limit:
            break
        end = character.end()
    return text[: end or limit]


def pretty_json(text: str) -> str | None:
    """JSON text with its parts on lines of their own; None if it is no object or list, or loses something that way."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(text, object_pairs_hook=_once)
        return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    except (ValueError, RecursionError):
        return None


def json_text(value: object) -> str:
    """A stored JSON value for a person: a text as it is, anything else as JSON on lines."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, indent=2)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found
