"""Numbers as tables and converters write them: a whole number as a float, any number as a text."""

from __future__ import annotations

import json
import re
from typing import Final

_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d{0,19})(?:\.\d{1,20})?(?:[eE][+-]?\d{1,2})?", re.ASCII)
# Up to this number, every whole number has its own float.
_EXACT_FLOAT: Final = 2**53


def whole(value: object) -> object:
    """Convert a whole number written as a float or a text to an integer; return any other value unchanged."""
    value = number(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT_FLOAT:
        return int(value)
    return value


def number(value: object) -> object:
    """Convert a number written as a text; return any other value unchanged."""
    return json.loads(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
