"""Schemas and regular expressions of acceptance rules, compiled.

Library: jsonschema-rs. Its regular expressions are those of Rust's ``regex`` crate, a finite automaton that never
backtracks: the time is linear in the answer. It fetches nothing that a schema refers to.

Trade-off: no look-around and no back references, which an automaton lacks; a backtracking engine has them, and needs
hours for ``(x+x+)+y``. Linear is still not quick: an expression at the size limit takes seconds for a long answer, and
a schema may double its work with each reference. Whoever judges an answer therefore does it in a process with a time
limit.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jsonschema_rs import Validator

    from helix_jobs.acceptance.rule import AcceptanceRule

# Patterns of a schema. Compiled, each may take _REGEX_BYTES, for the expression and for its automaton's cache.
MAX_PATTERNS: Final = 64
_REGEX_BYTES: Final = 1024 * 1024
# Trade-off: so few that hostile schemas, kept beside each other, stay within the memory of the process that judges; a
# batch whose lines have more rules than that compiles them again, at some milliseconds each.
_KEPT: Final = 8


def check_compiles(rule: AcceptanceRule, own_schema: Mapping[str, Any] | None) -> None:
    """Refuse a rule whose schema or regular expression cannot be used.

    Args:
        rule: The rule.
        own_schema: The schema that the request states for its answer; None without one.

    Raises:
        InvalidFieldError: Names the field and the reason.
    """
    if rule.regex is not None:
        try:
            compiled_regex(rule.regex)
        except ValueError:
            reason = "is no regular expression that can be used"
            remedy = "correct it; look-around, back references and very large counts are not taken"
            raise InvalidFieldError("accept.regex", reason, remedy) from None
    if rule.schema is None:
        return
    if rule.schema is True and own_schema is None:
        reason = "is true, and the request states no schema"
        raise InvalidFieldError("accept.schema", reason, "give a JSON Schema, or response_format with one")
    if (count := _num_patterns(own_schema if rule.schema is True else rule.schema)) > MAX_PATTERNS:
        raise InvalidFieldError("accept.schema", f"holds {count:,} patterns", f"give at most {MAX_PATTERNS}")
    try:
        compiled_schema(schema_text(rule, own_schema))
    except ValueError as error:
        raise InvalidFieldError(
            "accept.schema", f"is no JSON Schema that can be used ({error})", "correct it"
        ) from None


def schema_text(rule: AcceptanceRule, own_schema: Mapping[str, Any] | None) -> str:
    """The JSON text of the schema that the rule names."""
    return json.dumps(own_schema if rule.schema is True else rule.schema, sort_keys=True)


def _num_patterns(schema: Any) -> int:  # noqa: ANN401  (parsed JSON)
    """How many regular expressions a schema may make the library compile."""
    count, waiting = 0, [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            names = value.get("patternProperties")
            count += isinstance(value.get("pattern"), str) + (len(names) if isinstance(names, dict) else 0)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return count


@lru_cache(maxsize=_KEPT)
def compiled_regex(regex: str) -> Validator:
    """A validator of texts that match as a whole.

    Raises:
        ValueError: The expression is malformed, too large, or needs what the engine lacks.
    """
    _compiled({"pattern": regex})  # by itself, so that a parenthesis of it closes none of ours
    return _compiled({"pattern": f"^(?:{regex})$"})


@lru_cache(maxsize=_KEPT)
def compiled_schema(text: str) -> Validator:
    """A validator of parsed JSON.

    Raises:
        ValueError: The schema is malformed or refers to something that is not in it.
    """
    return _compiled(json.loads(text))


def _compiled(schema: Any) -> Validator:  # noqa: ANN401  (parsed JSON)
    from jsonschema_rs import ReferencingError, RegexOptions, ValidationError, validator_for

    try:
        return validator_for(
            schema,
            validate_formats=True,
            mask="the value",  # an answer's text must not reach an error message
            pattern_options=RegexOptions(size_limit=_REGEX_BYTES, dfa_size_limit=_REGEX_BYTES),
            offline=True,
        )
    except ValidationError as error:
        place = "/".join(map(str, error.instance_path))
        raise ValueError(f"at {place}" if place else "a reference leads out of it, or nowhere") from None
    except UnicodeError:
        raise ValueError("it holds half a character") from None
    except ReferencingError:
        raise ValueError("a reference leads out of it, or nowhere") from None
