"""Read calls as Python writes them, ``[f(a='x', b=[1, None])]``: LFM2 and other models write so.

Nothing is evaluated. Source: the chat template of LFM2.5.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

_BLANK: Final = re.compile(r"\s*")
_FUNCTION: Final = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*\(\s*")
_KEY: Final = re.compile(r"([A-Za-z_]\w*)\s*=\s*")
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_WORD: Final = re.compile(r"[A-Za-z]+")
_TEXTS: Final = {
    quote: re.compile(rf"{quote}([^{quote}\\]*(?:\\.[^{quote}\\]*)*){quote}", re.DOTALL) for quote in ("'", '"')
}
_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPED: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}
# JSON's words are taken, too: models mix them up.
_WORDS: Final = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}


def calls_at(text: str, place: int) -> tuple[list[tuple[str, dict[str, Any]]], int]:
    """The calls of the list at a place, as names and arguments, and where the list ends.

    Raises:
        ValueError: No whole list of calls stands there.
        RecursionError: It is nested too deeply.
    """
    place = _behind(text, place, "[")
    calls: list[tuple[str, dict[str, Any]]] = []
    while not text.startswith("]", place := _skip(text, place)):
        if calls:
            place = _behind(text, place, ",")
        function = _FUNCTION.match(text, place)
        if function is None:
            raise ValueError("no call")
        arguments, place = _arguments_at(text, function.end())
        calls.append((function[1], arguments))
    return calls, place + 1


def _arguments_at(text: str, place: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    while not text.startswith(")", place := _skip(text, place)):
        if found:
            place = _skip(text, _behind(text, place, ","))
        key = _KEY.match(text, place)
        if key is None or key[1] in found:
            raise ValueError("no argument of its own name")
        found[key[1]], place = value_at(text, key.end())
    return found, place + 1


def value_at(text: str, place: int) -> tuple[Any, int]:
    """The value at a place, behind white space, and where it ends.

    Raises:
        ValueError: No whole value stands there.
        RecursionError: It is nested too deeply.
    """
    place = _skip(text, place)
    first = text[place : place + 1]
    if first in _TEXTS:
        whole = _TEXTS[first].match(text, place)
        if whole is None:
            raise ValueError("an open text")
        return _ESCAPE.sub(_unescaped, whole[1]), whole.end()
    if first == "[":
        return _list_at(text, place + 1)
    if first == "{":
        return _mapping_at(text, place + 1)
    found = _NUMBER.match(text, place)
    if found is not None:
        return json.loads(found[0]), found.end()
    word = _WORD.match(text, place)
    if word is None or word[0] not in _WORDS:
        raise ValueError("no value")
    return _WORDS[word[0]], word.end()


def _list_at(text: str, place: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    while not text.startswith("]", place := _skip(text, place)):
        item, place = value_at(text, _behind(text, place, ",") if items else place)
        items.append(item)
    return items, place + 1


def _mapping_at(text: str, place: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    while not text.startswith("}", place := _skip(text, place)):
        key, place = value_at(text, _behind(text, place, ",") if found else place)
        if not isinstance(key, str) or key in found:
            raise ValueError("no key of its own")
        found[key], place = value_at(text, _behind(text, _skip(text, place), ":"))
    return found, place + 1


def _unescaped(escape: re.Match[str]) -> str:
    code = escape[1]
    if code[0] in "xuU" and len(code) > 1:
        return chr(int(code[1:], 16))
    if code in _ESCAPED:
        return _ESCAPED[code]
    return code if code in "\\'\"" else escape[0]


def _skip(text: str, place: int) -> int:
    blank = _BLANK.match(text, place)
    assert blank is not None, "the pattern matches nothing, too"
    return blank.end()


def _behind(text: str, place: int, mark: str) -> int:
    place = _skip(text, place)
    if not text.startswith(mark, place):
        raise ValueError("no " + mark)
    return place + len(mark)
