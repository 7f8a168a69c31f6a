"""JSON text: for a line of its own, and for the database."""

from __future__ import annotations

import json
from typing import Final

# Allowed in JSON as they are, and ends of lines to ``str.splitlines``, to JavaScript and to some editors. ASCII's own
# are escaped by JSON anyway.
_LINE_ENDS: Final = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})


def json_line(value: object) -> str:
    """Return JSON text, UTF-8 characters as they are, in which nothing but its end can be taken for a line's end."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isascii() else text.translate(_LINE_ENDS)


def compact_json(value: object) -> str:
    """Return JSON text without blanks, characters as they are: escapes would triple most of the world's prompts."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
