"""References: what a reference in a JSON schema names."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

# Digits of an index; an index of more is out of any list.
_MAX_DIGITS: Final = 10

# The names and indexes that lead from a schema's root to a place in it.
Path = tuple[str | int, ...]


class References:
    """Looks references up in one schema.

    Args:
        root: The whole schema, parsed JSON.
    """

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._anchors: dict[str, tuple[Path, Any]] | None = None

    def target(self, reference: str) -> tuple[Path, Any]:
        """Return the path and the value of what a reference names: a JSON pointer (RFC 6901) or an anchor, after ``#``.

        Raises:
            LookupError: Nothing is there.
        """
        if reference in ("#", "#/"):
            return (), self._root
        if not reference.startswith("#/"):
            return self._anchor(unquote(reference[1:]))
        path: list[str | int] = []
        value: Any = self._root
        for step in reference[2:].split("/"):
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict):
                path.append(name)
            elif isinstance(value, list) and name.isascii() and name.isdecimal() and len(name) < _MAX_DIGITS:
                path.append(int(name))
            else:
                raise LookupError(name)
            value = value[path[-1]]
        return tuple(path), value

    def _anchor(self, name: str) -> tuple[Path, Any]:
        if self._anchors is None:
            self._anchors = {}
            waiting: list[tuple[Path, Any]] = [((), self._root)]
            while waiting:
                path, value = waiting.pop()
                if isinstance(value, dict):
                    for word in ("$anchor", "$id", "id"):
                        if isinstance(given := value.get(word), str):
                            self._anchors[given.removeprefix("#")] = (path, value)
                    waiting += [((*path, word), item) for word, item in value.items()]
                elif isinstance(value, list):
                    waiting += [((*path, index), item) for index, item in enumerate(value)]
        return self._anchors[name]
