"""Acceptance rules: what may be asked for, and that every wrong field is named."""

from __future__ import annotations

import pytest

from helix_jobs.acceptance.patterns import MAX_PATTERNS, check_compiles
from helix_jobs.acceptance.rule import AcceptanceRule
from helix_jobs.acceptance.stored import own_schema, stored_rule
from helix_jobs.errors import InvalidFieldError, InvalidFieldsError

OBJECT = {"type": "object"}


def nested(levels):
    schema = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize(
    ("values", "field", "reason"),
    [
        ("yes", "accept", "is no object"),
        ([], "accept", "is no object"),
        ({}, "accept", "states no condition"),
        ({"max_tries": 5}, "accept", "states no condition"),
        ({"not_cut": False}, "accept", "states no condition"),
        ({"regexp": "a"}, "accept.regexp", "is no rule"),
        ({"a\nb" * 30: 1}, "accept.'" + "a\\nb" * 12 + "a...'", "is no rule"),
        ({"min_chars": "5"}, "accept.min_chars", "is no integer"),
        ({"min_chars": True}, "accept.min_chars", "is no integer"),
        ({"min_chars": 2.5}, "accept.min_chars", "is no integer"),
        ({"min_chars": 0}, "accept.min_chars", "0 is out of range"),
        ({"max_chars": -1}, "accept.max_chars", "-1 is out of range"),
        ({"max_tokens": 2**70}, "accept.max_tokens", f"{2**70} is out of range"),
        ({"not_cut": 1}, "accept.not_cut", "is no boolean"),
        ({"not_repeating": "true"}, "accept.not_repeating", "is no boolean"),
        ({"not_cut": True, "max_tries": 0}, "accept.max_tries", "0 is out of range"),
        ({"not_cut": True, "max_tries": 101}, "accept.max_tries", "101 is out of range"),
        ({"regex": ""}, "accept.regex", "has 0 characters"),
        ({"regex": "a" * 4097}, "accept.regex", "has 4,097 characters"),
        ({"regex": ["a"]}, "accept.regex", "is no string"),
        ({"schema": "{}"}, "accept.schema", "is neither an object nor true"),
        ({"schema": False}, "accept.schema", "is neither an object nor true"),
        ({"schema": nested(65)}, "accept.schema", "is nested too deeply"),
        ({"schema": {"enum": ["x" * 70_000]}}, "accept.schema", "has 70,014 characters as JSON"),
        ({"min_chars": 9, "max_chars": 8}, "accept.min_chars", "9 is more than max_chars, 8"),
        ({"min_tokens": 9, "max_tokens": 8}, "accept.min_tokens", "9 is more than max_tokens, 8"),
    ],
)
def test_a_wrong_field_is_named_with_its_reason(values, field, reason):
    with pytest.raises(InvalidFieldError) as caught:
        AcceptanceRule.from_mapping(values)
    assert (caught.value.field, caught.value.reason) == (field, reason)
    assert caught.value.remedy


def test_all_faults_are_told_at_once():
    with pytest.raises(InvalidFieldsError) as caught:
        AcceptanceRule.from_mapping({"min_chars": 0, "regex": 5, "not_cut": "x"})
    assert [fault.field for fault in caught.value.faults] == ["accept.regex", "accept.min_chars", "accept.not_cut"]
    with pytest.raises(InvalidFieldsError) as caught:
        AcceptanceRule.from_mapping({"a": 0, "b": 5})
    assert [fault.field for fault in caught.value.faults] == ["accept.a", "accept.b"]


def test_what_is_stored_is_read_back():
    rule = AcceptanceRule(
        schema=OBJECT,
        regex="a+",
        min_chars=1,
        max_chars=9,
        min_tokens=1,
        max_tokens=9,
        not_cut=True,
        not_repeating=True,
    )
    assert stored_rule({"accept": rule.to_dict()}) == rule
    assert "max_tries" not in rule.to_dict(), "only what differs from the default is stored"
    assert stored_rule({"prompt": "a"}) is None
    with pytest.raises(InvalidFieldError):
        stored_rule({"accept": "changed by hand"})


def test_a_line_adds_to_the_batch_and_null_takes_the_batchs_own():
    batch = AcceptanceRule(not_cut=True, min_chars=5, max_tries=2)
    line = AcceptanceRule.from_mapping({"min_chars": 9, "max_tries": None, "not_cut": False}, batch)
    assert line == AcceptanceRule(min_chars=9, max_tries=2)


@pytest.mark.parametrize("regex", ["(?=a)b", r"(a)\1", "a)(b", "(?:a", "(a{1000}){1000}", "["])
def test_an_expression_that_cannot_be_used_is_refused(regex):
    with pytest.raises(InvalidFieldError) as caught:
        check_compiles(AcceptanceRule(regex=regex), None)
    assert caught.value.field == "accept.regex"
    assert regex not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "number or so"}, "(at type)"),
        ({"properties": {"a": {"pattern": "(?=a)"}}}, "(at properties/a/pattern)"),
        ({"$ref": "http://localhost:1/schema"}, "leads out of it, or nowhere"),
        ({"$ref": "file:///etc/passwd"}, "leads out of it, or nowhere"),
        ({"$ref": "#/$defs/nothing"}, "leads out of it, or nowhere"),
        (True, "the request states no schema"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema, reason):
    with pytest.raises(InvalidFieldError) as caught:
        check_compiles(AcceptanceRule(schema=schema), None)
    assert caught.value.field == "accept.schema"
    assert reason in caught.value.reason


def test_a_schema_fetches_nothing(tmp_path):
    sound = tmp_path / "schema.json"
    sound.write_text('{"type": "object"}', encoding="utf-8")
    with pytest.raises(InvalidFieldError, match="leads out of it, or nowhere"):
        check_compiles(AcceptanceRule(schema={"$ref": sound.as_uri()}), None)


@pytest.mark.parametrize(
    ("request_", "schema"),
    [
        ({"constraint": {"kind": "json_schema", "value": '{"type": "object"}'}}, OBJECT),
        ({"constraint": {"kind": "json_object", "value": ""}}, OBJECT),
        ({"constraint": {"kind": "regex", "value": "a"}}, None),
        ({"constraint": {"kind": "json_schema", "value": "{"}}, None),
        ({"constraint": {"kind": "json_schema", "value": None}}, None),
        ({"constraint": {"kind": "json_schema", "value": "[1]"}}, None),
        ({"constraint": "edited"}, None),
        ({}, None),
    ],
)
def test_the_requests_own_schema_is_that_of_its_constraint(request_, schema):
    assert own_schema(request_) == schema


def test_the_requests_own_schema_is_checked_too():
    check_compiles(AcceptanceRule(schema=True), OBJECT)
    with pytest.raises(InvalidFieldError, match=r"accept\.schema"):
        check_compiles(AcceptanceRule(schema=True), {"type": "number or so"})


def test_a_schema_holds_as_many_patterns_as_are_compiled_at_once():
    """Each compiled pattern may take a megabyte: a thousand of them would fill the memory of whoever reads the line."""
    patterns = {f"a{number}": {"pattern": f"^{number}"} for number in range(MAX_PATTERNS - 1)}
    schema = {"properties": patterns, "patternProperties": {"^b": {}}}
    check_compiles(AcceptanceRule(schema=schema), None)
    more = {"allOf": [schema, {"pattern": "^c"}]}
    for rule, own in ((AcceptanceRule(schema=more), None), (AcceptanceRule(schema=True), more)):
        with pytest.raises(InvalidFieldError, match=f"accept.schema: holds {MAX_PATTERNS + 1} patterns; give at most"):
            check_compiles(rule, own)
