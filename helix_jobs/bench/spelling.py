"""Spell a JSON value so that a grammar takes it: a grammar wants the properties of an object in its schema's order."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from llguidance import LLMatcher, LLTokenizer

from helix_jobs.engine.grammar_text import grammar_limits, grammar_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helix_jobs.engine.constraint import Constraint

# Pieces of one value that may be refused or taken back. Names are tried in the order of the properties that the value
# seems to have, which mostly succeeds at once; all orders of a value of no spelling would be too many.
_MAX_MISSES: Final = 300
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


@dataclass(frozen=True, slots=True)
class _Members:
    """The members of an object that are still to be written."""

    values: dict[str, Any]
    is_first: bool = False


@dataclass(frozen=True, slots=True)
class _Items:
    """The items of a list that are still to be written, from an index on."""

    values: list[Any]
    index: int


# What is still to be written: a JSON value, or the rest of one, and then the tasks behind it.
_Tasks = tuple[Any, "_Tasks | None"]


class _Search:
    """Depth-first search along a matcher over bytes, which goes back where nothing fits."""

    def __init__(self, constraint: Constraint) -> None:
        self._origin = LLMatcher(_bytes(), grammar_text(constraint), log_level=0, limits=grammar_limits())
        schema = json.loads(constraint.value)
        self._orders = _orders(schema)
        self._keeps_fractions = _tells_fractions(schema)
        self._matcher = self._origin

    def takes(self, text: str) -> bool:
        """Whether the whole text fits."""
        self._matcher = self._origin.deep_copy()
        return self._write(text) and bool(self._matcher.is_accepting())

    def find(self, value: Any) -> str | None:  # noqa: ANN401  (parsed JSON)
        """The first spelling that fits."""
        self._matcher = self._origin.deep_copy()
        written: list[str] = []
        # For each place the pieces that are still to be tried there.
        places = [self._pieces((value, None))]
        misses = 0
        while places and misses <= _MAX_MISSES:
            text, rest = next(places[-1], (None, None))
            if text is not None and self._write(text):
                written.append(text)
                if rest is not None:
                    places.append(self._pieces(rest))
                    continue
                if self._matcher.is_accepting():
                    return "".join(written)
            elif text is None:
                places.pop()
            else:
                misses += 1
                continue
            if written:
                misses += 1
                self._matcher.rollback(len(written.pop().encode(errors="surrogatepass")))
        return None

    def _pieces(self, tasks: _Tasks) -> Iterator[tuple[str, _Tasks | None]]:
        """Each text that the first task may begin with, and the tasks that are left behind it."""
        task, rest = tasks
        if isinstance(task, _Members):
            if not task.values:
                yield "}", rest
            for name, value in task.values.items():
                others = {other: item for other, item in task.values.items() if other != name}
                key = ("" if task.is_first else ",") + json.dumps(name, ensure_ascii=False) + ":"
                yield key, (value, (_Members(others), rest))
        elif isinstance(task, _Items):
            if task.index == len(task.values):
                yield "]", rest
            else:
                yield ",", (task.values[task.index], (_Items(task.values, task.index + 1), rest))
        elif isinstance(task, dict) and task:
            yield "{", (_Members({name: task[name] for name in self._order(task)}, is_first=True), rest)
        elif isinstance(task, list) and task:
            yield "[", (task[0], (_Items(task, 1), rest))
        else:
            for text in _scalars(task, keeps_fractions=self._keeps_fractions):
                yield text, rest

    def _order(self, value: dict[str, Any]) -> list[str]:
        """A value's names in the order of the schema's properties that hold most of them, the others behind."""
        order = max(self._orders, key=lambda one: len(one.keys() & value.keys()), default={})
        return sorted(value, key=lambda name: order.get(name, len(order)))

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


def _orders(schema: Any) -> list[dict[str, int]]:  # noqa: ANN401  (parsed JSON)
    """For each object of a schema the places of its names; then the places at which the whole first lists each name."""
    orders: list[dict[str, int]] = []
    everywhere: dict[str, int] = {}
    waiting: list[Any] = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            here: dict[str, int] = {}
            for word in ("properties", "required"):
                listed = value.get(word)
                for name in listed if isinstance(listed, dict | list) else ():
                    here.setdefault(str(name), len(here))
                    everywhere.setdefault(str(name), len(everywhere))
            orders.append(here)
            waiting += reversed(value.values())
        elif isinstance(value, list):
            waiting += reversed(value)
    return [*orders, everywhere]


@cache
def _bytes() -> LLTokenizer:
    return LLTokenizer("byte")
