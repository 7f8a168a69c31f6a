"""What a line of Gemini asks for in its ``generationConfig``: a schema in OpenAPI's form, or an enum."""

from __future__ import annotations

import json

import pytest

from helix_jobs.errors import BadLine
from helix_jobs.new_job import NewJob
from tests.unit.intake.request_lines import read_one

CONFIG = "request.generationConfig"
RECIPE = {
    "type": "OBJECT",
    "properties": {
        "steps": {"type": "ARRAY", "items": {"type": "STRING"}, "minItems": "1", "max_items": 3},
        "name": {"type": "STRING", "nullable": True, "description": "as on the menu"},
        "servings": {"type": "INTEGER", "format": "enum", "enum": ["2", "4"]},
        "course": {"type": "STRING", "format": "enum", "enum": ["MAIN", "DESSERT"], "nullable": False},
        "vegan": {"type": "BOOLEAN"},
    },
    "required": ["name"],
    "propertyOrdering": ["name", "course", "steps"],
}


def line(**config):
    return {"request": {"contents": [{"parts": [{"text": "A soup"}]}], "generationConfig": config}}


def request_of(**config):
    item = read_one(line(**config))
    assert isinstance(item, NewJob), item
    return item.request


def schema_of(schema):
    constraint = request_of(responseMimeType="application/json", responseSchema=schema)["constraint"]
    assert constraint["kind"] == "json_schema"
    return json.loads(constraint["value"])


def test_a_schema_in_openapi_s_form_is_kept_as_a_json_schema():
    schema = schema_of(RECIPE)
    assert list(schema["properties"]) == ["name", "course", "steps", "servings", "vegan"]
    assert schema["additionalProperties"] is False
    assert "propertyOrdering" not in schema
    properties = schema["properties"]
    assert properties["steps"] == {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3}
    assert properties["servings"] == {"type": "integer", "enum": [2, 4]}
    assert properties["course"] == {"type": "string", "enum": ["MAIN", "DESSERT"]}
    assert properties["name"]["anyOf"][0]["type"] == "string"
    assert properties["name"]["anyOf"][1] == {"type": "null"}


def test_references_and_both_spellings_of_words():
    schema = {
        "type": "OBJECT",
        "nullable": True,
        "defs": {"pet": {"type": "STRING", "min_length": "1"}},
        "properties": {"b": {"any_of": [{"ref": "#/defs/pet"}, {"type": "NUMBER", "enum": ["1.5"]}]}, "a": {}},
        "property_ordering": ["a"],
    }
    kept = schema_of(schema)
    assert kept["$defs"] == {"pet": {"type": "string", "minLength": 1}}
    (option, null) = kept["anyOf"]
    assert null == {"type": "null"}
    assert list(option["properties"]) == ["a", "b"]
    assert option["properties"]["b"] == {"anyOf": [{"$ref": "#/$defs/pet"}, {"type": "number", "enum": [1.5]}]}


def test_an_object_that_says_whether_it_takes_others_is_heard():
    schema = {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}, "additionalProperties": {"type": "INTEGER"}}
    assert schema_of(schema)["additionalProperties"] == {"type": "integer"}


def test_an_enum_as_text():
    enum = {"type": "STRING", "enum": ["Percussion", "String"]}
    for config in (
        {"responseMimeType": "text/x.enum", "responseSchema": enum},
        {"response_mime_type": "text/x.enum", "response_json_schema": {**enum, "type": "string"}},
    ):
        assert request_of(**config)["constraint"] == {"kind": "choice", "value": '["Percussion","String"]'}
    as_json = request_of(responseMimeType="application/json", responseSchema=enum)["constraint"]
    assert json.loads(as_json["value"]) == {"type": "string", "enum": ["Percussion", "String"]}


@pytest.mark.parametrize(
    ("config", "field", "reason"),
    [
        ({"responseSchema": {"type": "OBJECT", "nullable": True, "properties": {"x": {"not": {}}}}},
         "responseSchema.properties.x.not", "asks for something that a grammar cannot keep"),
        ({"response_schema": {"anyOf": [{"type": "ARRAY", "nullable": True, "items": {"not": {}}}]}},
         "response_schema.anyOf[0].items.not", "asks for something that a grammar cannot keep"),
        ({"responseSchema": {"type": "STRING", "nullable": True, "min_length": -1}},
         "responseSchema.min_length", None),
        ({"responseSchema": {"type": "STRING", "nullable": "yes"}}, "responseSchema.nullable", "is a string"),
        ({"responseSchema": {"type": "STRING", "nullable": 1}}, "responseSchema.nullable", "is a number"),
        ({"responseSchema": {"type": "ARRAY", "minItems": "1", "min_items": 1}},
         "responseSchema.min_items", "is given twice, as minItems, too"),
        ({"responseSchema": {**RECIPE, "propertyOrdering": ["title"]}},
         "responseSchema.propertyOrdering", "names title, which is none of the properties"),
        ({"responseSchema": {"type": "OBJECT", "properties": {"a": {}}, "property_ordering": "a"}},
         "responseSchema.property_ordering", "is no list of names"),
        ({"responseSchema": {"type": "STRING", "format": "byte"}}, "responseSchema.format", None),
        ({"responseSchema": {"type": "STRING", "minLength": "9" * 5000}}, "responseSchema.minLength", None),
        ({"responseSchema": "x"}, "responseSchema", None),
        ({"responseSchema": {"type": "STRING"}, "responseJsonSchema": {}},
         "responseSchema", f"stands beside {CONFIG}.responseJsonSchema"),
        ({"responseSchema": {"type": "STRING"}, "responseMimeType": "text/plain"},
         "responseSchema", "stands beside text/plain"),
        ({"responseMimeType": "text/x.enum"}, "responseMimeType", "stands without responseSchema"),
        ({"responseMimeType": "image/png"}, "responseMimeType", "asks for something Helix does not do"),
        ({"responseMimeType": "text/x.enum", "responseSchema": {"type": "STRING"}},
         "responseSchema.enum", "is missing"),
        ({"responseMimeType": "text/x.enum", "responseSchema": {"type": "STRING", "enum": ["a", "a"]}},
         "responseSchema.enum", "holds the same choice twice"),
        ({"responseMimeType": "text/x.enum", "responseSchema": {"type": "INTEGER", "enum": ["1"]}},
         "responseSchema.type", "stands beside text/x.enum, which is a text"),
        ({"responseMimeType": "text/x.enum", "responseSchema": {"enum": ["a"], "nullable": True}},
         "responseSchema.nullable", "is not a field that is taken here"),
        ({"responseMimeType": "text/x.enum", "responseSchema": {"enum": ["a"], "format": "date"}},
         "responseSchema.format", "is none that a text of the enum has"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_told_by_its_path_in_the_line(config, field, reason):
    item = read_one(line(**config))
    assert isinstance(item, BadLine), item
    assert item.field == f"{CONFIG}.{field}"
    assert reason in (None, item.reason)


def test_a_fault_in_a_function_s_parameters_has_its_path_in_the_line():
    parameters = {"type": "OBJECT", "properties": {"x": {"type": "ARRAY", "nullable": True, "uniqueItems": True}}}
    asked = line()
    asked["request"] |= {
        "tools": [{"function_declarations": [{"name": "f", "parameters": parameters}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
    }
    item = read_one(asked)
    assert isinstance(item, BadLine), item
    assert item.field == "request.tools[0].function_declarations[0].parameters.properties.x.uniqueItems"
    parameters["properties"]["x"] = {"type": "STRING"}
    asked["request"]["tools"][0]["function_declarations"][0]["parametersJsonSchema"] = {}
    twice = read_one(asked)
    assert (twice.field, twice.reason) == (
        "request.tools[0].function_declarations[0].parameters",
        "stands beside parametersJsonSchema",
    )
