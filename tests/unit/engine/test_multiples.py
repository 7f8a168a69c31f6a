"""Multiples of a fraction: a grammar has a spelling for every value that the schema allows, and for no other."""

from __future__ import annotations

import json
from decimal import Decimal
from functools import cache

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.grammar_text import grammar_limits, grammar_text
from helix_jobs.engine.multiples import with_all_spellings

MULTIPLES = ("0.25", "0.01", "0.05", "0.125", "0.3", "2", "2.5", "50", "1.75", "0.001")
BOUNDS = {
    "free": {},
    "around 0": {"minimum": -40, "exclusiveMaximum": 1e6},
    "above 0": {"exclusiveMinimum": 0},
    "below 0": {"exclusiveMaximum": 0},
}


@cache
def origin(schema):
    return LLMatcher(
        LLTokenizer("byte"), grammar_text(Constraint("json_schema", schema)), log_level=0, limits=grammar_limits()
    )


def takes(schema, text):
    matcher = origin(json.dumps(schema)).deep_copy()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize("multiple", MULTIPLES)
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_every_multiple_within_bounds_is_written_with_as_few_decimals_as_it_has(multiple, bounds):
    schema = {"type": "number", "multipleOf": json.loads(multiple), **bounds}
    limits = {name: bound for name, bound in schema.items() if name != "multipleOf"}
    for count in (*range(-24, 25), 99, 1000):
        value = Decimal(multiple) * count
        shortest = f"{value.normalize():f}"
        allowed = not list(jsonschema.Draft202012Validator(limits).iter_errors(float(value)))
        assert takes(schema, shortest) == (allowed and shortest != "-0"), shortest


@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_no_other_number_is_let_through(bounds):
    schema = {"type": "number", "multipleOf": 0.25, **bounds}
    for text in ("0.1", "2.3", "-2.45", "0.125", "2.", ".5", "2.2", "-0.7", "1e1"):
        assert not takes(schema, text), text


def test_a_multiple_stands_beside_other_words():
    schema = {
        "type": "object",
        "properties": {
            "multipleOf": {"anyOf": [{"type": "string"}, {"minimum": 1}], "multipleOf": 0.25},
            "list": {"type": "array", "items": {"$ref": "#/$defs/half"}},
        },
        "$defs": {"half": {"type": "number", "multipleOf": 0.125, "maximum": 2}},
    }
    assert takes(schema, '{"multipleOf":1.5,"list":[-0.5,0.375,2.00]}')
    assert takes(schema, '{"multipleOf":"a"}')
    for text in ('{"multipleOf":0.5}', '{"multipleOf":1.3}', '{"list":[2.5]}', '{"list":[0.3]}'):
        assert not takes(schema, text), text


def test_values_that_only_look_like_schemas_stay_as_they_are():
    schema = {"enum": [{"multipleOf": 0.25}], "const": {"multipleOf": 0.25}, "default": {"multipleOf": 0.25}}
    assert with_all_spellings(schema) == schema
    assert with_all_spellings(schema=True) is True
    for kept in (0.01, 5, 1, True):
        assert with_all_spellings({"multipleOf": kept}) == {"multipleOf": kept}
    original = {"properties": {"a": {"multipleOf": 0.25}}}
    assert with_all_spellings(original) == {"properties": {"a": {"anyOf": [{"multipleOf": 0.25}, {"multipleOf": 0.5}]}}}
    assert original == {"properties": {"a": {"multipleOf": 0.25}}}
