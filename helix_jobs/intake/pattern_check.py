"""Check a regular expression: what the grammar library cannot keep, and what it reads in another way than others do."""

from __future__ import annotations

import json
import re
from typing import Final

from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.grammar_text import complaint
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.line_faults import cut

# In a class, Rust's regular expressions read a bracket as a class in it, and these pairs as operations on sets.
_SET_OPERATION: Final = re.compile(r"&&|--|~~|\[")
_ESCAPE: Final = re.compile(r"\\.", re.DOTALL)
_PARSER: Final = re.compile(r"error: ([^\n]+)")


def check_pattern(pattern: str, field: str) -> None:
    """Refuse a ``pattern`` of a JSON schema that is not kept.

    Raises:
        InvalidFieldError: The library refuses it, or reads it in another way than ECMA 262 does.
    """
    _check(Constraint("json_schema", json.dumps({"type": "string", "pattern": pattern})), pattern, field)


def check_regex(regex: str, field: str) -> None:
    """Refuse a regular expression for a whole answer that is not kept. Raises as ``check_pattern``."""
    _check(Constraint("regex", regex), regex, field)


def _check(constraint: Constraint, pattern: str, field: str) -> None:
    refused = complaint(constraint)
    if refused is not None:
        raise InvalidFieldError(field, *_reason(refused))
    if _has_set_operation(pattern):
        reason = "has [, &&, -- or ~~ inside a class, where regular expressions differ"
        raise InvalidFieldError(field, reason, "write a backslash before each of the characters")


def _reason(refused: str) -> tuple[str, str]:
    if "look-around" in refused or "lookarounds" in refused:
        return "uses look-around, which a grammar cannot keep", r"leave out (?=, (?!, \b, and ^ or $ in the middle"
    if "backreferences" in refused:
        return "uses a backreference, which a grammar cannot keep", "write the text out"
    if (parser := _PARSER.search(refused)) is not None:
        return f"is no regular expression: {cut(parser[1], 80)}", "correct it (Rust's syntax, without look-around)"
    if "mpty" in refused:
        return "matches no text", "correct it"
    return "is too complex for the grammar library", "make it simpler"


def _has_set_operation(pattern: str) -> bool:
    plain = _ESCAPE.sub("..", pattern)
    place = plain.find("[")
    while place >= 0:
        # A bracket that closes right after the opening one is a character of the class.
        start = place + 2 if plain[place + 1 : place + 2] == "^" else place + 1
        end = plain.find("]", start + 1)
        inside = plain[start : end if end >= 0 else len(plain)]
        if _SET_OPERATION.search(inside):
            return True
        place = plain.find("[", end) if end >= 0 else -1
    return False
