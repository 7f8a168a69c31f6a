"""Read the arguments of a call as Gemma 4 writes them: like JSON, with bare names and texts between marks of their own.

Source: the chat template of Gemma 4.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

_QUOTE: Final = '<|"|>'
_NAME: Final = re.compile(r"[^\s:{}\[\],<>]+")
_BARE: Final = re.compile(r"[^\s{}\[\],<>]+")
# The template writes a missing value as Python does.
_WORDS: Final = {"true": True, "false": False, "null": None, "None": None}


def arguments_at(text: str, place: int) -> tuple[dict[str, Any], int]:
    """The object that begins at a place, and where it ends.

    Raises:
        ValueError: No whole object stands there.
        RecursionError: It is nested too deeply.
    """
    if not text.startswith("{", place):
        raise ValueError("no object")
    found: dict[str, Any] = {}
    place += 1
    while not text.startswith("}", place):
        if found:
            place = _behind(text, place, ",")
        if text.startswith(_QUOTE, place):
            name, place = _text_at(text, place)
        else:
            bare = _NAME.match(text, place)
            if bare is None:
                raise ValueError("no name")
            name, place = bare[0], bare.end()
        if name in found:
            raise ValueError("a name twice")
        found[name], place = _value_at(text, _behind(text, place, ":"))
    return found, place + 1


def _value_at(text: str, place: int) -> tuple[Any, int]:
    if text.startswith(_QUOTE, place):
        return _text_at(text, place)
    if text.startswith("{", place):
        return arguments_at(text, place)
    if text.startswith("[", place):
        items: list[Any] = []
        place += 1
        while not text.startswith("]", place):
            item, place = _value_at(text, _behind(text, place, ",") if items else place)
            items.append(item)
        return items, place + 1
    bare = _BARE.match(text, place)
    if bare is None:
        raise ValueError("no value")
    value = _WORDS[bare[0]] if bare[0] in _WORDS else json.loads(bare[0])
    return value, bare.end()


def _text_at(text: str, place: int) -> tuple[str, int]:
    start = place + len(_QUOTE)
    end = text.index(_QUOTE, start)
    return text[start:end], end + len(_QUOTE)


def _behind(text: str, place: int, mark: str) -> int:
    if not text.startswith(mark, place):
        raise ValueError("no " + mark)
    return place + len(mark)
