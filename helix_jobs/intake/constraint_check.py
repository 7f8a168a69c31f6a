"""Check what a constraint says, and give the text that is stored. No torch, no tokenizer.

Each check takes the text of a field. The field of a fault is the path after that field's own name, often empty.
"""

from __future__ import annotations

import json
import re
from typing import Final

from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.grammar_text import complaint
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.line_faults import cut, kind
from helix_jobs.intake.pattern_check import check_regex
from helix_jobs.intake.schema_check import MAX_SCHEMA_CHARS, check_schema, trial
from helix_jobs.intake.strict_json import decode, refuse_unstorable

MAX_PATTERN_CHARS: Final = 16_384
MAX_GRAMMAR_CHARS: Final = 65_536
# Rules that refer to each other in a chain take the library's stack, 4 KB each.
MAX_RULES: Final = 250
MAX_CHOICES: Final = 1_000
MAX_CHOICE_CHARS: Final = 65_536


_STRING: Final = re.compile(r'"(?:\\.|[^"\\\n])*"')


def check_schema_text(text: str) -> str:
    """Return a JSON schema as it is stored.

    Raises:
        InvalidFieldError: The text is no JSON, or the schema cannot be kept.
        InvalidFieldsError: Several words of the schema cannot be kept.
    """
    _check_size(text, MAX_SCHEMA_CHARS)
    try:
        schema = decode(text.encode(), first=False)
        refuse_unstorable(schema)
    except UnicodeEncodeError as error:
        raise InvalidFieldError("", "holds half of a surrogate pair", "remove it") from error
    except InvalidFieldError as error:
        raise InvalidFieldError("", f"as JSON text {error.reason}", error.remedy) from error
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InvalidFieldError("", f"is {kind(schema)}, no schema", 'give an object such as {"type": "object"}')
    return check_schema(schema, "")


def check_regex_text(text: str) -> str:
    """Return a regular expression as it is stored.

    Raises:
        InvalidFieldError: It cannot be kept.
    """
    _check_size(text, MAX_PATTERN_CHARS)
    if not text:
        raise InvalidFieldError("", "is empty", "give a regular expression for the whole answer")
    check_regex(text, "")
    _check_trial(Constraint("regex", text))
    return text


def check_choices(text: str) -> str:
    """Return a list of choices as it is stored, as JSON text.

    Raises:
        InvalidFieldError: It is no list of different texts, or has none or too many.
    """
    try:
        choices = json.loads(text)
    except (ValueError, RecursionError):
        choices = None
    if not isinstance(choices, list) or not choices:
        reason = "is empty" if choices == [] else "is no list of strings"
        raise InvalidFieldError("", reason, 'give a list such as ["yes", "no"]')
    for index, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice:
            reason = "is empty" if choice == "" else f"is {kind(choice)}"
            raise InvalidFieldError(f"[{index}]", reason, "give a string of at least one character")
    if len(choices) > MAX_CHOICES:
        raise InvalidFieldError("", f"holds {len(choices):,} choices", f"give at most {MAX_CHOICES:,}")
    if (size := sum(map(len, choices))) > MAX_CHOICE_CHARS:
        raise InvalidFieldError("", f"has {size:,} characters", f"give at most {MAX_CHOICE_CHARS:,}")
    if len(set(choices)) < len(choices):
        raise InvalidFieldError("", "holds the same choice twice", "give each once")
    stored = json.dumps(choices, ensure_ascii=False, separators=(",", ":"))
    _check_trial(Constraint("choice", stored))
    return stored


def check_grammar(text: str) -> str:
    """Return a Lark grammar as it is stored.

    Raises:
        InvalidFieldError: It is in another language, or the library cannot keep it.
    """
    _check_size(text, MAX_GRAMMAR_CHARS)
    if "::=" in text:
        remedy = 'write it in Lark, where root ::= "a" | "b" is start: "a" | "b" (python -m llguidance.gbnf_to_lark)'
        raise InvalidFieldError("", "is a grammar in EBNF or GBNF", remedy)
    plain = _STRING.sub('""', text)
    if "%json" in plain:
        raise InvalidFieldError("", "holds a JSON schema", "give the schema in response_format")
    if (rules := plain.count(":")) > MAX_RULES:
        raise InvalidFieldError("", f"has {rules} colons outside strings", f"give at most {MAX_RULES} rules")
    constraint = Constraint("grammar", text)
    refused = complaint(constraint)
    if refused is not None:
        remedy = 'give a Lark grammar whose first rule is start, such as start: "a" | "b"'
        raise InvalidFieldError("", f"is refused by the grammar library: {cut(refused.splitlines()[0], 120)}", remedy)
    _check_trial(constraint)
    return text


def _check_size(text: str, limit: int) -> None:
    if len(text) > limit:
        raise InvalidFieldError("", f"has {len(text):,} characters", f"give at most {limit:,}")


def _check_trial(constraint: Constraint) -> None:
    failed = trial(constraint)
    if failed is not None:
        raise InvalidFieldError("", *failed)
