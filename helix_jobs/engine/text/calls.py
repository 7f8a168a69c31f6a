"""Call and CallForm: a call of a function, and a form in which models write calls."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from helix_jobs.engine.text.argument_tags import ArgumentTags
    from helix_jobs.engine.text.value_syntax import ValueSyntax

_BLANK: Final = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class Call:
    """A call that an answer holds.

    Attributes:
        name: The function's name.
        arguments: JSON text of an object.
    """

    name: str
    arguments: str


class NoCallsError(Exception):
    """A text holds no calls in the form, or broken ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """A form of calls.

    Attributes:
        name: The form's name.
        seen: Regular expression of a call of the function ``NAME`` in a rendered chat.
        read: Splits a text into the words around the calls and the calls; raises ``NoCallsError``.
        before: Text before each call's name, in a call that is enforced.
        between: Text between name and arguments.
        after: Text behind the arguments.
        separator: Text between two calls; None if an answer holds one only.
        opens: Token or text before the first call.
        closes: Text behind the last call.
        thought: Texts around a thought before the call, where the grammar says how the answer thinks; else None.
        tags: How arguments stand one by one; None where they stand together.
        syntax: How arguments that stand together are written; None for JSON.
        token: A token that only models of this form have, for templates that write no calls; empty for none.
    """

    name: str
    seen: str
    read: Callable[[str, Mapping[str, Any]], tuple[str, list[Call]]]
    before: str
    between: str
    after: str = ""
    separator: str | None = None
    opens: str = ""
    closes: str = ""
    thought: tuple[str, str] | None = None
    tags: ArgumentTags | None = None
    syntax: ValueSyntax | None = None
    token: str = ""


def json_at(text: str, place: int) -> tuple[Any, int]:
    """The JSON value at a place, behind white space, and where it ends.

    Raises:
        NoCallsError: There is none.
    """
    try:
        return _DECODER.raw_decode(text, skip(text, place))
    except (ValueError, RecursionError) as error:
        raise NoCallsError from error


def _no_constant(name: str) -> None:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)


def call_of(value: object, *arguments_keys: str, name_key: str = "name") -> Call:
    """A call, from an object with the function's name and, under one of the keys, its arguments.

    Raises:
        NoCallsError: It is no such object.
    """
    if not isinstance(value, dict) or not isinstance(value.get(name_key), str):
        raise NoCallsError
    arguments: Any = next((value[key] for key in arguments_keys if key in value), {})
    if isinstance(arguments, str):
        arguments, end = json_at(arguments, 0)
        del end
    if not isinstance(arguments, dict):
        raise NoCallsError
    return Call(value[name_key], dumped(arguments))


def dumped(arguments: dict[str, Any]) -> str:
    """The arguments as JSON text.

    Raises:
        NoCallsError: They are no JSON.
    """
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no database stores
        return json.dumps(arguments, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise NoCallsError from error
    return text


def skip(text: str, place: int) -> int:
    """The place behind the white space at a place."""
    blank = _BLANK.match(text, place)
    assert blank is not None, "the pattern matches nothing, too"
    return blank.end()


def behind(text: str, place: int, tag: str, *, is_needed: bool = False) -> int:
    """The place behind a tag, which may be missing at the end of the text: a stop may have cut it.

    Raises:
        NoCallsError: Something else stands there.
    """
    place = skip(text, place)
    if text.startswith(tag, place):
        return place + len(tag)
    if is_needed or place < len(text):
        raise NoCallsError
    return place


def joined(words: list[str]) -> str:
    """The words around the calls, as one text."""
    return "\n".join(filter(None, (word.strip() for word in words)))
