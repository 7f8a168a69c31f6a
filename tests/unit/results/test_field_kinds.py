"""Columns of JSON answers: what a schema says they are, and how a value is fitted."""

from __future__ import annotations

import pytest

from helix_jobs.errors import ConfigurationError
from helix_jobs.results.field_kinds import FieldKind, fields_of_schema, fitted, merged, plain


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string"}, FieldKind.STRING),
        ({"type": ["string", "null"]}, FieldKind.STRING),
        ({"type": ["integer", "number"]}, FieldKind.DOUBLE),
        ({"type": ["integer", "string"]}, FieldKind.JSON),
        ({"enum": ["a", None]}, FieldKind.STRING),
        ({"enum": [1, 2.5]}, FieldKind.DOUBLE),
        ({"const": True}, FieldKind.BOOL),
        ({"type": "array", "items": {"type": "integer"}}, FieldKind.NUMBERS),
        ({"type": "array", "items": {"type": "object"}}, FieldKind.JSON),
        ({"type": "array"}, FieldKind.JSON),
        ({"anyOf": [{"type": "string"}]}, FieldKind.STRING),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, FieldKind.INT),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, FieldKind.DOUBLE),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, FieldKind.JSON),
        ({"anyOf": [{"$ref": "#/$defs/mood"}, {"type": "null"}]}, FieldKind.STRING),
        ({"allOf": [{"$ref": "#/$defs/mood"}]}, FieldKind.STRING),
        ({"$ref": "#/$defs/mood"}, FieldKind.STRING),
        ({"$ref": "#/$defs/alias"}, FieldKind.STRING),
        ({"type": "array", "items": {"$ref": "#/$defs/mood"}}, FieldKind.STRINGS),
        ({"$ref": "#/$defs/circle"}, FieldKind.JSON),
        ({"anyOf": [{"$ref": "#/properties/x"}]}, FieldKind.JSON),
        ({"$ref": "#/nowhere"}, FieldKind.JSON),
        ({"type": "null"}, FieldKind.JSON),
        (True, FieldKind.JSON),
    ],
)
def test_a_property_is_a_column_of_its_kind(schema, kind):
    definitions = {
        "mood": {"enum": ["good", "bad"]},
        "alias": {"$ref": "#/$defs/mood"},
        "circle": {"$ref": "#/$defs/circle"},
    }
    assert fields_of_schema({"properties": {"x": schema}, "$defs": definitions}) == {"x": kind}


def test_a_schema_may_refer_to_its_object_and_may_have_none():
    schema = {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"properties": {"x": {"type": "boolean"}}}}}
    assert fields_of_schema(schema) == {"x": FieldKind.BOOL}
    for other in ({"$ref": "#"}, {"$ref": "#/nowhere"}, {"type": "string"}, True, None, []):
        assert fields_of_schema(other) == {}


def test_schemas_of_several_lines_share_their_columns():
    first = {"a": FieldKind.INT, "b": FieldKind.STRING}
    assert merged(first, {"a": FieldKind.DOUBLE, "b": FieldKind.INT, "c": FieldKind.BOOL}) == {
        "a": FieldKind.DOUBLE,
        "b": FieldKind.JSON,
        "c": FieldKind.BOOL,
    }


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, FieldKind.DOUBLE, 1.0),
        (4.0, FieldKind.INT, 4),
        (4.5, FieldKind.INT, None),
        (2**70, FieldKind.INT, None),
        (True, FieldKind.INT, None),
        ("1", FieldKind.INT, None),
        (1, FieldKind.STRING, None),
        ([1, "x"], FieldKind.NUMBERS, [1.0, None]),
        ("x", FieldKind.STRINGS, None),
        ({"a": 1}, FieldKind.JSON, {"a": 1}),
        (None, FieldKind.BOOL, None),
    ],
)
def test_a_value_is_fitted_or_left_out(value, kind, expected):
    found = fitted(value, kind)
    assert (found, type(found)) == (expected, type(expected))


def test_a_value_without_a_form_in_json_names_its_column():
    assert plain({"a": b"text"}, "x") == {"a": "text"}
    with pytest.raises(ConfigurationError, match="the column x holds bytes that are no text, which JSON"):
        plain([b"\xff"], "x")
