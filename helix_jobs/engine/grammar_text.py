"""The text of a constraint in the grammar library's own language. No torch, no tokenizer.

The submission and the worker both go through here: what one has checked is what the other compiles.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from llguidance import LLMatcher, LLParserLimits

from helix_jobs.engine.multiples import with_all_spellings

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

    from helix_jobs.engine.constraint import Constraint, Whitespace

# Most white space characters in one place, where the model may choose. A model that falls into writing blanks goes on
# after this many; documents nested 60 levels deep still fit.
MAX_BLANKS: Final = 128
# Escapes in a JSON text, without \u. With it, {"a": 1} could be written as {"\u0061": 1}, and the library would take
# that name for another one than "a", to which the schema of "a" does not apply.
_ESCAPES: Final = 'nrbtf\\"'
# What building and extending a grammar may cost, in the library's own units: about 0.1 s each million.
_LEXER_FUEL: Final = 3_000_000
_STEP_FUEL: Final = 2_000_000


def grammar_limits() -> LLParserLimits:
    """The limits under which grammars are checked and compiled. Error messages leave out the grammar's text.

    Trade-off: the library's own limit on lexer fuel is a third of this one and ends schemas that ask for both a pattern
    of some words and a length; ten times as much would let one mask take a second. Its limit on a step's fuel is a
    tenth of this one and ends answers where a name or a text may have any of many lengths, as in ``{1,255}``; with this
    one a mask takes some 30 ms at the most.
    """
    return LLParserLimits(initial_lexer_fuel=_LEXER_FUEL, step_lexer_fuel=_STEP_FUEL, verbose_errors=False)


def trial_limits() -> LLParserLimits:
    """The limits of a trial at submission: lower ones, so that what is kept has some to spare with a vocabulary."""
    return LLParserLimits(initial_lexer_fuel=_LEXER_FUEL, verbose_errors=False)


def grammar_text(constraint: Constraint) -> str:
    """Return the text that ``llguidance.LLMatcher`` takes as its grammar. Nothing is checked here.

    A schema's order of properties is the order of the answer.

    Raises:
        ValueError: The value of a ``json_schema`` or a ``choice`` is not JSON.
    """
    if constraint.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(
            _with_all_spellings(constraint.value), overrides=json_options(constraint.whitespace)
        )
    if constraint.kind == "json_object":
        return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=json_options(constraint.whitespace))
    if constraint.kind == "choice":
        return LLMatcher.grammar_from_regex("|".join(_literal(choice) for choice in json.loads(constraint.value)))
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.value)
    return LLMatcher.grammar_from_lark(constraint.value)


def complaint(constraint: Constraint) -> str | None:
    """Return what the grammar library has against the constraint, or None if it can keep it.

    Raises:
        ValueError: As ``grammar_text``.
    """
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar_text(constraint), limits=grammar_limits())
    return messages[0] if is_error else None


def json_options(whitespace: Whitespace = "compact") -> JsonCompileOptions:
    """The grammar library's options for every JSON that an answer holds, a call's arguments included."""
    options: JsonCompileOptions = {
        "json_allowed_escapes": _ESCAPES,
        "lenient": False,
        "coerce_one_of": False,
        "whitespace_flexible": False,
    }
    if whitespace == "model":
        options["whitespace_pattern"] = rf"[\x20\x0A\x0D\x09]{{1,{MAX_BLANKS}}}"
    return options


def _with_all_spellings(schema: str) -> str:
    """A schema's text; only one that speaks of multiples is read for that."""
    return json.dumps(with_all_spellings(json.loads(schema))) if '"multipleOf"' in schema else schema


def _literal(text: str) -> str:
    """A regular expression for this text alone."""
    return "".join(
        character if character.isascii() and character.isalnum() else f"\\x{{{ord(character):x}}}" for character in text
    )
