"""Spell a JSON value so that a grammar takes it: a grammar wants the properties of an object in its schema's order."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from llguidance import LLMatcher, LLTokenizer

from helix_jobs.engine.grammar_text import grammar_limits, grammar_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.engine.constraint import Constraint

# Pieces tried for one value. Names are tried in the order in which the schema first lists them, which mostly succeeds
# at once; all orders of a value of no spelling would be too many.
_MAX_TRIES: Final = 300
# Drafts in which 2.0 is no integer, as it has a fraction.
_FRACTIONS_COUNT: Final = ("draft-03", "draft-04", "draft-05")


class Spelling(Enum):
    """In which spelling a grammar takes a value: as written but for white space, in another, or in none."""

    AS_WRITTEN = "as written"
    OTHER = "other"
    NONE = "none"


def spell(constraint: Constraint, value: Any) -> tuple[Spelling, str | None]:  # noqa: ANN401  (parsed JSON)
    """Find a spelling of a value that a constraint takes, and its text.

    All spellings found stand for the same JSON value: the properties of an object may come in any order, and 2.0 may be
    written as 2, unless the draft that the schema declares tells these apart.
    """
    search = _Search(constraint)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if search.takes(text):
        return Spelling.AS_WRITTEN, text
    found = search.find(value)
    return (Spelling.NONE, None) if found is None else (Spelling.OTHER, found)


class _Search:
    """Depth-first search along a matcher over bytes, which goes back where nothing fits."""

    def __init__(self, constraint: Constraint) -> None:
        self._origin = LLMatcher(_bytes(), grammar_text(constraint), log_level=0, limits=grammar_limits())
        schema = json.loads(constraint.value)
        self._order = _listed_names(schema)
        self._keeps_fractions = _tells_fractions(schema)
        self._tries = 0
        self._written: list[str] = []
        self._matcher = self._origin

    def takes(self, text: str) -> bool:
        """Whether the whole text fits."""
        self._matcher = self._origin.deep_copy()
        return self._write(text) and bool(self._matcher.is_accepting())

    def find(self, value: Any) -> str | None:  # noqa: ANN401  (parsed JSON)
        """The first spelling that fits."""
        self._matcher, self._written = self._origin.deep_copy(), []
        for _ in self._value(value):
            if self._matcher.is_accepting():
                return "".join(self._written)
        return None

    def _value(self, value: Any) -> Iterator[None]:  # noqa: ANN401  (parsed JSON)
        """Yield after each way to write the value; go back when asked for the next."""
        if isinstance(value, dict) and value:
            yield from self._pieces("{", lambda: self._members(value, first=True))
        elif isinstance(value, list) and value:
            yield from self._pieces("[", lambda: self._items(value, 0))
        else:
            for text in _scalars(value, keeps_fractions=self._keeps_fractions):
                yield from self._pieces(text, None)

    def _members(self, rest: dict[str, Any], *, first: bool) -> Iterator[None]:
        if not rest:
            yield from self._pieces("}", None)
            return
        for name, value in sorted(rest.items(), key=lambda item: self._order.get(item[0], len(self._order))):
            others = {other: item for other, item in rest.items() if other != name}
            key = ("" if first else ",") + json.dumps(name, ensure_ascii=False) + ":"

            def after(value: Any = value, others: dict[str, Any] = others) -> Iterator[None]:  # noqa: ANN401  (JSON)
                for _ in self._value(value):
                    yield from self._members(others, first=False)

            yield from self._pieces(key, after)

    def _items(self, items: list[Any], index: int) -> Iterator[None]:
        for _ in self._value(items[index]):
            if index + 1 == len(items):
                yield from self._pieces("]", None)
            else:
                yield from self._pieces(",", lambda: self._items(items, index + 1))

    def _pieces(self, text: str, after: Any) -> Iterator[None]:  # noqa: ANN401  (a function without arguments, or None)
        """Write a text, then what follows it; take the text back in the end."""
        self._tries += 1
        if self._tries > _MAX_TRIES or not self._write(text):
            return
        self._written.append(text)
        if after is None:
            yield
        else:
            yield from after()
        self._written.pop()
        self._matcher.rollback(len(text.encode()))

    def _write(self, text: str) -> bool:
        data = list(text.encode(errors="surrogatepass"))
        taken = self._matcher.try_consume_tokens(data)
        if taken < len(data):
            self._matcher.rollback(taken)
            return False
        return True


def _scalars(value: Any, *, keeps_fractions: bool) -> Iterator[str]:  # noqa: ANN401  (parsed JSON)
    yield json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if isinstance(value, float) and math.isfinite(value):
        plain = f"{Decimal(repr(value)):f}"
        yield plain
        if "." in plain and plain.rstrip("0").endswith("."):
            if not keeps_fractions:
                yield plain.rstrip("0").rstrip(".")
        elif "." not in plain:
            yield f"{plain}.0"


def _tells_fractions(schema: Any) -> bool:  # noqa: ANN401  (parsed JSON)
    """Whether the draft that the schema declares tells 2.0 from 2: the former is a number there, and no integer."""
    declared = schema.get("$schema") if isinstance(schema, dict) else None
    return isinstance(declared, str) and any(draft in declared for draft in _FRACTIONS_COUNT)


def _listed_names(schema: Any) -> dict[str, int]:  # noqa: ANN401  (parsed JSON)
    """The names in all ``properties`` and ``required`` of a schema, and the place at which each first stands."""
    names: dict[str, int] = {}
    waiting: list[Any] = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for word in ("properties", "required"):
                listed = value.get(word)
                for name in listed if isinstance(listed, dict | list) else ():
                    names.setdefault(str(name), len(names))
            waiting += reversed(value.values())
        elif isinstance(value, list):
            waiting += reversed(value)
    return names


@cache
def _bytes() -> LLTokenizer:
    return LLTokenizer("byte")
