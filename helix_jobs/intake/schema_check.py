"""Check a JSON schema before it is stored, and give the text that is stored. No torch, no tokenizer.

Three checks, each for what the one before cannot see: the walk over the schema's words; the grammar library, which
builds the grammar; and a short trial, which follows the grammar along a made-up text.
"""

from __future__ import annotations

import copy
import json
from bisect import bisect_left
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from llguidance import LLMatcher, LLTokenizer

from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.grammar_text import complaint, grammar_text, trial_limits
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.line_faults import cut
from helix_jobs.intake.schema_keywords import DEFINITIONS
from helix_jobs.intake.schema_walk import shown, subschemas, walk_schema
from helix_jobs.json_depth import is_deeper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helix_jobs.intake.schema_references import Path

MAX_SCHEMA_CHARS: Final = 262_144
# The library's own parser ends at 128, its own wrapping included.
MAX_SCHEMA_DEPTH: Final = 100

# Times that looking for a fault's path may ask the library, which may take a tenth of a second each time.
_SEARCH_TRIES: Final = 60
# The trial's text: strings of some words, so that a grammar which counts them is followed.
_TRIAL_TEXT: Final = b'What is the meaning of 42, and why do we ask for it at all?"'
_TRIAL_STEPS: Final = 200
_TRIAL_FORCED: Final = 100
_UNSATISFIABLE: Final = "cannot be satisfied by any answer"
_SIMPLER: Final = "make it simpler: fewer options or optional properties, no length beside a pattern that counts words"
# Words that are at fault where the removal of several would help.
_APPLICATORS: Final = frozenset({"oneOf", "anyOf", "allOf", "minProperties", "maxProperties"})
# What the library says of a schema that it cannot keep -> reason and remedy.
_REASONS: Final = (
    (
        "oneOf",
        "has options of which an answer might fit two, as far as the grammar library can tell",
        "use anyOf, or give each option a required property with a const of its own",
    ),
    (
        "min/maxProperties",
        "counts properties of which some are optional",
        "put all of properties into required, or remove it",
    ),
    ("circular references", "refers to itself beside other words", "put the other words into what it refers to"),
    ("disjoint", "has patternProperties that one name may match twice", "write patterns that exclude each other"),
    ("nsatisfiable", _UNSATISFIABLE, "correct it"),
    ("Regex is empty", _UNSATISFIABLE, "correct it"),
    ("integer range", "has bounds beyond 64 bits", "give smaller bounds"),
)
_TOO_COMPLEX: Final = ("too large", "too big", "stack level", "fuel", "too complex", "too many", "Unable to determine")


def check_schema(schema: dict[str, Any], field: str) -> str:
    """Return the schema's text as it is stored.

    Args:
        schema: Parsed JSON, which belongs to this call: words that ask for nothing are taken out of it.
        field: The schema's own name, which begins the path of each fault.

    Raises:
        InvalidFieldError: The schema cannot be kept; the field is the path of the word at fault.
        InvalidFieldsError: Several words cannot be kept.
    """
    if is_deeper(schema, MAX_SCHEMA_DEPTH):
        raise InvalidFieldError(field, "is nested too deeply", f"give at most {MAX_SCHEMA_DEPTH} levels")
    if (size := len(_text(schema))) > MAX_SCHEMA_CHARS:
        raise InvalidFieldError(field, f"has {size:,} characters as JSON", f"give at most {MAX_SCHEMA_CHARS:,}")
    walk_schema(schema, field)
    refused = _complaint(schema)
    if refused is not None:
        if any(mark in refused for mark in _TOO_COMPLEX):
            # It comes from the whole, and each further try would take as long.
            raise InvalidFieldError(field, "is too complex for the grammar library", _SIMPLER)
        raise InvalidFieldError(shown(field, _culprit(schema, refused)), *_reason(refused))
    constraint = Constraint("json_schema", _text(schema))
    failed = trial(constraint)
    if failed is not None:
        raise InvalidFieldError(field, *failed)
    return constraint.value


def trial(constraint: Constraint) -> tuple[str, str] | None:
    """Go along a made-up answer of some hundred bytes; return the reason and the remedy if that fails, else None.

    It fails where the library's limits are reached, or where nothing more is allowed.

    Trade-off: one text is no proof. What it does not find fails its own job, after the library's limits, in time.
    """
    matcher = LLMatcher(_byte_tokenizer(), grammar_text(constraint), log_level=0, limits=trial_limits())
    for step in range(_TRIAL_STEPS):
        # What is forced needs no mask, which is what costs.
        taken = list(matcher.compute_ff_bytes()[:_TRIAL_FORCED]) or [_choice(matcher.compute_bitmask(), step)]
        if matcher.is_stopped() or not matcher.consume_tokens(taken):
            break
    if not matcher.is_error():
        return None
    if matcher.stop_reason().startswith("NoExtension"):
        return _UNSATISFIABLE, "correct it"
    return "is too complex for the grammar library to follow", _SIMPLER


@cache
def _byte_tokenizer() -> LLTokenizer:
    return LLTokenizer("byte")


def _choice(mask: bytes, step: int) -> int:
    """A byte that is allowed: the trial text's own, else ASCII from the letters down, else any; 0 if none is."""
    order = (_TRIAL_TEXT[step % len(_TRIAL_TEXT)], *range(ord("a"), 0x7F), *range(ord("a")), *range(0x7F, 256))
    return next((byte for byte in order if mask[byte >> 3] >> (byte & 7) & 1), 0)


def _text(schema: object) -> str:
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def _complaint(schema: dict[str, Any]) -> str | None:
    return complaint(Constraint("json_schema", _text(schema)))


def _reason(refused: str) -> tuple[str, str]:
    for mark, reason, remedy in _REASONS:
        if mark in refused:
            return reason, remedy
    return f"cannot be kept: {cut(refused.splitlines()[0], 80)}", "remove it"


def _culprit(schema: dict[str, Any], refused: str) -> Path:
    """Find the path of what the library refuses, which itself does not say it.

    At each level the schemas in it are replaced by ``true``, from the first on, until the library no longer says the
    same: the last one replaced is at fault. Where none is, a word of this level itself is, if its removal helps.
    """
    tried = copy.deepcopy(schema)
    place: Any = tried
    path: Path = ()
    tries = 0

    def helps() -> bool:
        nonlocal tries
        tries += 1
        return _complaint(tried) != refused

    while tries < _SEARCH_TRIES:
        # Definitions first: a fault in one of them would also end where it is referred to.
        parts = sorted(subschemas(place), key=lambda part: part[0][0] not in DEFINITIONS)

        def replaced_to(count: int, place: object = place, parts: Sequence[tuple[Path, Any]] = parts) -> bool:
            for index, (inner, value) in enumerate(parts):
                _replace(place, inner, new=True if index < count else value)
            return helps()

        if not parts or not replaced_to(len(parts)):
            replaced_to(0)
            break
        last = bisect_left(range(1, len(parts)), x=True, key=replaced_to)
        inner, value = parts[last]
        replaced_to(last)
        if not isinstance(value, dict):
            return path
        path, place = (*path, *inner), value
    for word in sorted(place, key=lambda word: word not in _APPLICATORS)[: _SEARCH_TRIES - tries]:
        kept = dict(place)
        del place[word]
        if helps():
            return (*path, word)
        place.clear()
        place.update(kept)
    return path


def _replace(schema: Any, path: Sequence[str | int], *, new: object) -> None:  # noqa: ANN401  (parsed JSON)
    for step in path[:-1]:
        schema = schema[step]
    schema[path[-1]] = new
