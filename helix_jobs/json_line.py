"""JSON text: for a line of its own, and for the database."""

from __future__ import annotations

import json
from typing import Final

# JSON allows these characters unescaped, but ``str.splitlines``, JavaScript and some editors end a line at them. JSON
# escapes the ASCII ones anyway.
_LINE_ENDS: Final = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})
# ``json.dumps`` would make an encoder for each value.
_LINE: Final = json.JSONEncoder(ensure_ascii=False)
_COMPACT: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def json_line(value: object) -> str:
    """Return JSON text as one line, with UTF-8 characters unescaped, except those that could end a line."""
    text = _LINE.encode(value)
    return text if text.isascii() else text.translate(_LINE_ENDS)


def compact_json(value: object) -> str:
    """Return JSON text without blanks and escapes: escapes would triple the size of most of the world's prompts."""
    return _COMPACT.encode(value)
