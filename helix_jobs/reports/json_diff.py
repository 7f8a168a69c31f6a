"""The fields in which two JSON answers differ. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_FIELDS: Final = 200
_MOST_DEPTH: Final = 64


class _Nothing:
    """The value of a field that is not there."""

    def __repr__(self) -> str:
        return "nothing"


NOTHING: Final = _Nothing()


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field whose values differ.

    Attributes:
        path: ``person.age`` or ``items[2]``; empty for the whole.
        before: Its value, or ``NOTHING``.
        after: Its value, or ``NOTHING``.
    """

    path: str
    before: Any
    after: Any

    @property
    def field(self) -> str:
        """The path without the places in lists, by which changes of many answers are counted."""
        parts = self.path.split("[")
        return parts[0] + "".join("[]" + part.partition("]")[2] for part in parts[1:])


def read_json(text: str) -> Any:  # noqa: ANN401  (JSON)
    """The object or list that a text is as JSON; ``NOTHING`` if it is neither."""
    if text.lstrip()[:1] not in ("{", "["):
        return NOTHING
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return NOTHING
    return value


def json_diff(before: Any, after: Any) -> list[FieldChange]:  # noqa: ANN401  (JSON)
    """The fields that differ, the first two hundred; equal values in another order of keys are the same."""
    found = []
    for change in _changes("", before, after, _MOST_DEPTH):
        found.append(change)
        if len(found) == _MOST_FIELDS:
            break
    return found


def _changes(path: str, before: Any, after: Any, depth: int) -> Iterator[FieldChange]:  # noqa: ANN401  (JSON)
    if depth and isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            inner = f"{path}.{key}" if path else str(key)
            yield from _changes(inner, before.get(key, NOTHING), after.get(key, NOTHING), depth - 1)
    elif depth and isinstance(before, list) and isinstance(after, list):
        for place in range(max(len(before), len(after))):
            left = before[place] if place < len(before) else NOTHING
            right = after[place] if place < len(after) else NOTHING
            yield from _changes(f"{path}[{place}]", left, right, depth - 1)
    elif not _equal(before, after):
        yield FieldChange(path, before, after)


def _equal(one: Any, other: Any) -> bool:  # noqa: ANN401  (JSON)
    """Whether two values are the same JSON: to Python, true is 1 as well."""
    if NOTHING in (one, other):
        return one is other
    return type(one) is type(other) and json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
