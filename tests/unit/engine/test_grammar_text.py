"""The text of a constraint: what the grammar library then takes and refuses."""

from __future__ import annotations

import json

import llguidance
import pytest

from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.grammar_text import MAX_BLANKS, complaint, grammar_limits, grammar_text

BYTES = llguidance.LLTokenizer("byte")
PERSON = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}, "b\n": {"type": "integer"}}})


def takes(constraint: Constraint, text: str) -> bool:
    matcher = llguidance.LLMatcher(BYTES, grammar_text(constraint), log_level=0, limits=grammar_limits())
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"a":1}', True),
        ('{"a":"x"}', False),
        ('{"c":"x"}', True),
        ('{"\\u0061":"x"}', False),  # the same name, written with an escape
        ('{"\\u0061":1}', False),
        ('{"b\\u000a":"x"}', False),
        ('{"b\\n":1}', True),
        ('{"a": 1}', False),
        ('{"c":"\\n\\"\\\\"}', True),
    ],
)
def test_a_name_cannot_get_around_its_schema(text, fits):
    assert takes(Constraint("json_schema", PERSON), text) is fits


def test_the_library_alone_lets_an_escaped_name_through():
    """The reason for the escapes that are left out. If this fails, the library has mended it."""
    grammar = llguidance.LLMatcher.grammar_from_json_schema(PERSON, overrides={"whitespace_flexible": False})
    matcher = llguidance.LLMatcher(BYTES, grammar, log_level=0)
    assert matcher.consume_tokens(list(b'{"\\u0061":"x"}'))


def test_options_in_a_schema_do_not_loosen_it():
    loosened = {"type": "string", "not": {}, "x-guidance": {"lenient": True, "whitespace_flexible": True}}
    assert "not" in str(complaint(Constraint("json_schema", json.dumps(loosened))))


@pytest.mark.parametrize("kind", ["json_schema", "json_object"])
def test_white_space_is_none_or_bounded(kind):
    value = '{"type":"object"}' if kind == "json_schema" else ""
    compact, model = Constraint(kind, value), Constraint(kind, value, "model")
    assert takes(compact, '{"a":[1,2]}')
    assert takes(model, '{"a":[1,2]}')
    assert not takes(compact, '{"a": 1}')
    assert takes(model, '{\n  "a": [1,\t2]\n}')
    assert takes(model, '{"a":' + " " * MAX_BLANKS + "1}")
    assert not takes(model, '{"a":' + " " * (MAX_BLANKS + 1) + "1}")
    assert not takes(model, ' {"a":1}')
    assert not takes(compact, "[1]")


def test_choices_are_taken_letter_by_letter():
    choices = ["a b", "a", "x|y", "é\n😀", ".*", '"']
    constraint = Constraint("choice", json.dumps(choices))
    assert all(takes(constraint, choice) for choice in choices)
    assert not any(takes(constraint, other) for other in ("", "b", "x", "y", "aa", "a ", "é", "\\"))


def test_a_regular_expression_holds_for_the_whole_answer():
    assert [takes(Constraint("regex", "[0-9]{2}|no"), text) for text in ("12", "no", "1", "123", "x12")] == [
        *(True, True),
        *(False, False, False),
    ]


def test_a_lark_grammar():
    constraint = Constraint("grammar", 'start: greeting " " NAME\ngreeting: "hello" | "hi"\nNAME: /[A-Z][a-z]+/')
    assert complaint(constraint) is None
    assert takes(constraint, "hi Ada")
    assert not takes(constraint, "hi ada")
    assert "unknown name" in str(complaint(Constraint("grammar", "start: nothing")))


def test_a_complaint_says_nothing_of_the_grammar_beyond_one_line_of_it():
    """Errors of a matcher reach logs."""
    matcher = llguidance.LLMatcher(
        BYTES, grammar_text(Constraint("json_schema", '{"enum":["secret"]}')), log_level=0, limits=grammar_limits()
    )
    assert not matcher.consume_token(ord("x"))
    assert "secret" not in matcher.get_error()
