"""Judge an answer by an acceptance rule: a pure function. Reasons never quote the answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from helix_jobs.acceptance.patterns import compiled_regex, compiled_schema, schema_text
from helix_jobs.acceptance.repetition import repetition_at_end
from helix_jobs.json_depth import is_deeper

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.acceptance.rule import AcceptanceRule

# The library's validator is recursive.
MAX_ANSWER_DEPTH: Final = 256
_MAX_REASON_CHARS: Final = 300


@dataclass(frozen=True, slots=True)
class Answer:
    """What a rule looks at.

    Attributes:
        text: The answer without the model's thinking.
        tokens: Its number of tokens.
        is_cut: Whether ``max_tokens`` or the context cut it off.
    """

    text: str
    tokens: int
    is_cut: bool


def judge(rule: AcceptanceRule, answer: Answer, own_schema: Mapping[str, Any] | None = None) -> str | None:
    """Return why the rule refuses the answer, or None if it accepts it. The first condition that fails is named.

    Takes long, or for ever, with a hostile pattern: call it in a process with limits if ``rule.has_pattern``.

    Args:
        rule: The rule.
        answer: The answer.
        own_schema: The schema that the request states for its answer.
    """
    return _by_measures(rule, answer) or _by_patterns(rule, answer.text.strip(), own_schema)


def _by_measures(rule: AcceptanceRule, answer: Answer) -> str | None:
    if rule.not_cut and answer.is_cut:
        return "it was cut off by max_tokens or by the end of the context"
    for unit, count in (("chars", len(answer.text.strip())), ("tokens", answer.tokens)):
        least, most = getattr(rule, f"min_{unit}"), getattr(rule, f"max_{unit}")
        word = "characters" if unit == "chars" else unit
        if least is not None and count < least:
            return f"it has {count:,} {word}, and min_{unit} is {least:,}"
        if most is not None and count > most:
            return f"it has {count:,} {word}, and max_{unit} is {most:,}"
    if rule.not_repeating and (found := repetition_at_end(answer.text)) is not None:
        return f"it repeats itself: its last {found.chars:,} characters have a period of {found.unit_chars:,}"
    return None


def _by_patterns(rule: AcceptanceRule, text: str, own_schema: Mapping[str, Any] | None) -> str | None:
    try:
        if rule.regex is not None and not compiled_regex(rule.regex).is_valid(text):
            return "it does not match the regular expression"
        if rule.schema is not None:
            return _by_schema(schema_text(rule, own_schema), text)
    except ValueError as error:
        return f"the rule cannot be used: {error}"
    return None


def _by_schema(schema: str, text: str) -> str | None:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        return "it is nested too deeply to be looked at"
    except ValueError as error:
        # Not the error's own text, which quotes a constant.
        place = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        return f"it is not JSON{place}"
    if is_deeper(value, MAX_ANSWER_DEPTH):
        return "it is nested too deeply to be looked at"
    for fault in compiled_schema(schema).iter_errors(value):
        place = "/".join(map(str, fault.schema_path)) or "the schema itself"
        return f"it is not valid against the schema: it fails {place}"[:_MAX_REASON_CHARS]
    return None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
