"""Parse one line's JSON strictly: no duplicate names, no NaN, no text that Postgres cannot store."""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.line_faults import WHOLE_LINE, cut
from helix_jobs.intake.text_encoding import narrow_encoding

_UTF16_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")
# An escape that may encode NUL or half a surrogate pair; only lines that match are searched value by value.
_SUSPECT_ESCAPE: Final = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidFieldError(cut(twice, 40), "is given twice", "keep one of them")
    return values


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise InvalidFieldError(WHOLE_LINE, "holds a number beyond floating point", "give a smaller number")
    return value


def _constant(name: str) -> NoReturn:
    raise InvalidFieldError(WHOLE_LINE, f"holds {name}, which is not JSON", "give a number or null")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)


def decode(data: bytes, *, first: bool) -> object:
    """Parse one line strictly.

    Raises:
        InvalidFieldError: The line is not UTF-8, not JSON, or holds text that Postgres cannot store.
    """
    if b"\0" in data or (first and data.startswith(_UTF16_BOMS)):
        remedy = "save the file as UTF-8 (it may be UTF-16)"
        raise InvalidFieldError(WHOLE_LINE, "holds NUL bytes or a UTF-16 mark", remedy)
    try:
        values = _DECODER.decode(data.decode())
    except UnicodeDecodeError as error:
        encoding = narrow_encoding(data)
        assert encoding is not None, "it did not decode"
        remedy = f"it looks like {encoding.what}; if all of the file is: {encoding.command} | helix submit -"
        raise InvalidFieldError(WHOLE_LINE, f"is not UTF-8 at byte {error.start + 1}", remedy) from error
    except json.JSONDecodeError as error:
        reason = f"is not JSON: {error.msg} at character {error.pos + 1}"
        raise InvalidFieldError(WHOLE_LINE, reason, "write one JSON object on one line") from error
    except ValueError as error:
        raise InvalidFieldError(WHOLE_LINE, "holds a number with too many digits", "shorten it") from error
    except RecursionError as error:
        raise InvalidFieldError(WHOLE_LINE, "is nested too deeply", "flatten it") from error
    if _SUSPECT_ESCAPE.search(data):
        refuse_unstorable(values)
    return values


def refuse_unstorable(values: object) -> None:
    """Refuse NUL, which Postgres cannot store, and unpaired surrogates, which UTF-8 cannot encode; JSON escapes can.

    Raises:
        InvalidFieldError: A value holds one; the field is the path to that value.
    """
    stack: list[tuple[str, object]] = [(WHOLE_LINE, values)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, str):
            found = _UNSTORABLE.search(value)
            if found:
                reason = "holds a NUL character" if found[0] == "\0" else "holds half of a surrogate pair"
                raise InvalidFieldError(cut(path), reason, "remove it")
        elif isinstance(value, dict):
            for name, item in value.items():
                inner = ascii(name)[1:-1] if path == WHOLE_LINE else f"{path}.{ascii(name)[1:-1]}"
                stack += [(inner, item), (inner, name)]
        elif isinstance(value, list):
            stack += [(f"{path}[{index}]", item) for index, item in enumerate(value)]
