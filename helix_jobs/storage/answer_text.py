"""Whether a text stands in a job: in its custom id, its request, or one of its answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.json_line import compact_json

if TYPE_CHECKING:
    from collections.abc import Iterator

# What of a request a person wrote; the rest is fields and their values.
_WRITTEN: Final = ("prompt", "messages", "metadata")
# Members of messages and tool calls that hold a word of the protocol.
_PROTOCOLS: Final = frozenset({"role", "type"})


class TextSearch:
    """Looks for one text, in capital or small letters, in any script.

    Trade-off: the database could look by itself, but SQLite folds ASCII letters alone, Postgres folds as its locale
    says, and neither looks into the strings of JSON without failing at a damaged one. Here both find the same.

    Args:
        text: What to look for.
    """

    def __init__(self, text: str) -> None:
        self._wanted = text.casefold()
        # As it stands within a JSON string.
        self._in_json = compact_json(self._wanted)[1:-1]

    def is_in(self, text: str | None) -> bool:
        """Whether it stands in the text."""
        return text is not None and self._wanted in text.casefold()

    def is_in_request(self, request: str | None) -> bool:
        """Whether it stands in the prompt, the messages or the metadata of a stored request, given as JSON text."""
        return self._may_be_in(request) and any(map(self.is_in, _texts_of_request(request or "")))

    def is_in_json(self, value: str | None) -> bool:
        """Whether it stands in a string of a JSON text, such as stored tool calls."""
        return self._may_be_in(value) and any(map(self.is_in, _texts(_read(value or ""))))

    def _may_be_in(self, value: str | None) -> bool:
        """Whether it is worth reading the JSON: reading takes ten times as long as this."""
        # An escape by number may stand for any character.
        return value is not None and (self._in_json in value.casefold() or "\\u" in value)


def _texts_of_request(request: str) -> Iterator[str]:
    values = _read(request)
    if isinstance(values, dict):
        values = [values.get(name) for name in _WRITTEN]
    yield from _texts(values)


def _read(value: str) -> Any:  # noqa: ANN401  (any JSON)
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value  # damaged: its text is what there is


def _texts(value: object) -> Iterator[str]:
    """All strings in a JSON value, without recursion: it may be nested deeply."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            left.extend(member for name, member in one.items() if name not in _PROTOCOLS)
        elif isinstance(one, list):
            left.extend(one)
