"""How deep parsed JSON is nested: code that walks it recursively runs out of stack, a library's as well."""

from __future__ import annotations


def is_deeper(value: object, levels: int) -> bool:
    """Whether a value is nested in more than ``levels`` objects and lists, the outermost included. Does not recurse."""
    layer = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        if not layer:
            return False
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return bool(layer)
