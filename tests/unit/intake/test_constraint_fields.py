"""The fields of structured output, in all line forms and peers' spellings, and what stands in their way."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest

from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import BadLine, InputError, InvalidFieldError
from helix_jobs.intake import constraint_fields
from helix_jobs.intake.constraint_fields import default_constraint, read_constraint
from helix_jobs.intake.lines import LineReader
from helix_jobs.intake.stored_requests import to_engine_request
from helix_jobs.new_job import NewJob
from tests.unit.intake.request_lines import read_one

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}, "required": ["b"]}
TEXT = json.dumps(SCHEMA, separators=(",", ":"))
KEPT = {"kind": "json_schema", "value": TEXT}
NAMED = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
LARK = 'start: "a" | "b"'


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        ({"response_format": NAMED}, KEPT),
        ({"response_format": {**NAMED, "whitespace": "model"}}, {**KEPT, "whitespace": "model"}),
        ({"response_format": {"type": "json_schema", "name": "p", "schema": SCHEMA}}, KEPT),
        ({"response_format": {"type": "json_object"}}, {"kind": "json_object", "value": ""}),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, KEPT),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": None, "guided_json": None}, None),
        ({"structured_outputs": {"json": SCHEMA}}, KEPT),
        ({"structured_outputs": {"json": TEXT, "whitespace": "compact"}}, KEPT),
        ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True, "disable_fallback": True}}, KEPT),
        ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": False}}, {**KEPT, "whitespace": "model"}),
        ({"structured_outputs": {"json_object": True}}, {"kind": "json_object", "value": ""}),
        ({"structured_outputs": {"regex": "[0-9]+", "json": None}}, {"kind": "regex", "value": "[0-9]+"}),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, {"kind": "choice", "value": '["yes","no"]'}),
        ({"structured_outputs": {"grammar": LARK}}, {"kind": "grammar", "value": LARK}),
        ({"guided_json": SCHEMA}, KEPT),
        ({"guided_json": TEXT}, KEPT),
        ({"guided_json": True}, {"kind": "json_schema", "value": "{}"}),
        ({"guided_json_object": True}, {"kind": "json_object", "value": ""}),
        ({"guided_json_object": False}, None),
        ({"guided_regex": "a+", "guided_decoding_backend": "xgrammar"}, {"kind": "regex", "value": "a+"}),
        ({"guided_choice": ["é"]}, {"kind": "choice", "value": '["é"]'}),
        ({"guided_grammar": LARK}, {"kind": "grammar", "value": LARK}),
        ({"json_schema": TEXT}, KEPT),
        ({"json_schema": SCHEMA, "grammar": ""}, KEPT),
        ({"regex": "a+"}, {"kind": "regex", "value": "a+"}),
        ({"grammar": LARK}, {"kind": "grammar", "value": LARK}),
        ({"ebnf": LARK}, {"kind": "grammar", "value": LARK}),
    ],
)
def test_every_spelling_is_stored_alike_and_read_back(fields, stored):
    for line in (
        {"prompt": "a", **fields},
        {"messages": [{"role": "user", "content": "a"}], **fields},
        {"custom_id": "c", "url": "/v1/completions", "body": {"prompt": "a", **fields}},
    ):
        job = read_one(line)
        assert isinstance(job, NewJob), job
        assert job.request.get("constraint") == stored
        request = to_engine_request(1, job.request)
        assert request.constraint == (None if stored is None else Constraint(**stored))


def test_other_providers_lines():
    responses = {
        "url": "/v1/responses",
        "body": {"input": "a", "text": {"format": {**NAMED["json_schema"], "type": "json_schema"}}},
    }
    gemini = {
        "request": {
            "contents": [{"parts": [{"text": "a"}]}],
            "generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA},
        }
    }
    for line in (responses, gemini):
        job = read_one(line)
        assert isinstance(job, NewJob), job
        assert job.request["constraint"] == KEPT
    openapi = {"request": {**gemini["request"], "generationConfig": {"responseSchema": {"type": "OBJECT"}}}}
    assert read_one(openapi).request["constraint"] == {"kind": "json_schema", "value": '{"type":"object"}'}
    del gemini["request"]["generationConfig"]["responseJsonSchema"]
    assert read_one(gemini).request["constraint"] == {"kind": "json_object", "value": ""}


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (
            {"url": "/v1/responses",
             "body": {"input": "a", "text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}},
            "body.text.format.schema.not",
        ),
        ({"url": "/v1/responses", "body": {"input": "a", "text": {"verbosity": "low"}}}, "body.text.verbosity"),
        ({"url": "/v1/responses", "body": {"input": "a", "text": "json"}}, "body.text"),
        (
            {
                "request": {
                    "contents": [{"parts": [{"text": "a"}]}],
                    "generationConfig": {"responseJsonSchema": {"properties": {"x": {"not": {}}}}},
                }
            },
            "request.generationConfig.responseJsonSchema.properties.x.not",
        ),
        (
            {
                "request": {
                    "contents": [{"parts": [{"text": "a"}]}],
                    "generationConfig": {"responseSchema": {"type": "OBJECT", "not": {}}},
                }
            },
            "request.generationConfig.responseSchema.not",
        ),
    ],
)  # fmt: skip
def test_a_fault_in_another_providers_line_has_their_name(line, field):
    bad = read_one(line)
    assert isinstance(bad, BadLine), bad
    assert bad.field == field


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"response_format": "json"}, "response_format", "is a string"),
        ({"response_format": {}}, "response_format.type", "is none of OpenAI's"),
        ({"response_format": {"type": "grammar", "grammar": "x"}}, "response_format.type", "is grammar"),
        ({"response_format": {"type": ["text"]}}, "response_format.type", "is none of OpenAI's"),
        ({"response_format": {"type": "text", "json_schema": {}}},
         "response_format.json_schema", "is not a known field"),
        ({"response_format": {"type": "json_schema"}}, "response_format.schema", "is missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
         "response_format.json_schema.schema", "is missing"),
        ({"response_format": {"type": "json_schema", "json_schema": []}}, "response_format.json_schema", "is a list"),
        ({"response_format": {**NAMED, "strict": True}}, "response_format.strict", "is not a known field"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": "yes"}}},
         "response_format.json_schema.strict", "is a string"),
        ({"response_format": {**NAMED, "whitespace": "any"}}, "response_format.whitespace", "is unknown"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type", "asks for a structural tag"),
        ({"structural_tag": {"structures": []}}, "structural_tag", "asks for a structural tag"),
        ({"structured_outputs": []}, "structured_outputs", "is a list"),
        ({"structured_outputs": {}}, "structured_outputs", "asks for nothing"),
        ({"structured_outputs": {"jsn": SCHEMA}}, "structured_outputs.jsn", "is not a known field"),
        ({"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " ?"}},
         "structured_outputs.whitespace_pattern", "asks for white space of another form"),
        ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True, "whitespace": "model"}},
         "structured_outputs.disable_any_whitespace", "differs from whitespace"),
        ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": 1}},
         "structured_outputs.disable_any_whitespace", "is a number"),
        ({"structured_outputs": {"json": SCHEMA, "disable_additional_properties": True}},
         "structured_outputs.disable_additional_properties", "asks for something Helix does not do"),
        ({"structured_outputs": {"structural_tag": "x"}},
         "structured_outputs.structural_tag", "asks for a structural tag"),
        ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs.regex", "stands beside"),
        ({"guided_json": SCHEMA, "response_format": {"type": "json_object"}},
         "response_format", "stands beside guided_json"),
        ({"guided_whitespace_pattern": " ?"}, "guided_whitespace_pattern", "asks for white space of another form"),
        ({"guided_json": SCHEMA, "ignore_eos": True}, "ignore_eos", "stands beside a form of the answer"),
        ({"guided_json": 3}, "guided_json", "is a number"),
        ({"guided_json": "{"}, "guided_json", "as JSON text is not JSON"),
        ({"guided_json": '{"type": "null", "type": "string"}'}, "guided_json", "as JSON text is given twice"),
        ({"guided_json": '{"enum": ["\\u0000"]}'}, "guided_json", "as JSON text holds a NUL character"),
        ({"guided_json": "[]"}, "guided_json", "is a list, no schema"),
        ({"guided_json": False}, "guided_json", "is a boolean, no schema"),
        ({"guided_json_object": "yes"}, "guided_json_object", "is a string"),
        ({"guided_regex": "(?=a)b"}, "guided_regex", "uses look-around"),
        ({"guided_regex": "(a)\\1"}, "guided_regex", "uses a backreference"),
        ({"guided_regex": "(a"}, "guided_regex", "is no regular expression: unclosed group"),
        ({"guided_regex": ""}, "guided_regex", "is empty"),
        ({"guided_regex": ["a"]}, "guided_regex", "is a list"),
        ({"guided_regex": "a" * 20_000}, "guided_regex", "has 20,000 characters"),
        ({"regex": "[a-z&&[aeiou]]"}, "regex", "has [, &&, -- or ~~ inside a class"),
        ({"guided_choice": []}, "guided_choice", "is empty"),
        ({"guided_choice": "yes"}, "guided_choice", "is no list of strings"),
        ({"guided_choice": {"a": 1}}, "guided_choice", "is an object"),
        ({"guided_choice": ["a", 1]}, "guided_choice[1]", "is a number"),
        ({"guided_choice": ["a", ""]}, "guided_choice[1]", "is empty"),
        ({"guided_choice": ["a", "a"]}, "guided_choice", "holds the same choice twice"),
        ({"guided_choice": [str(number) for number in range(1001)]}, "guided_choice", "holds 1,001 choices"),
        ({"guided_choice": ["a" * 70_000]}, "guided_choice", "has 70,000 characters"),
        ({"guided_grammar": 'root ::= "a"'}, "guided_grammar", "is a grammar in EBNF or GBNF"),
        ({"grammar": 'root ::= "a"'}, "grammar", "is a grammar in EBNF or GBNF"),
        ({"ebnf": 'root ::= "a"'}, "ebnf", "is a grammar in EBNF or GBNF"),
        ({"grammar": "start: nothing"}, "grammar", "is refused by the grammar library"),
        ({"grammar": 'start: %json {"not": {}}'}, "grammar", "holds a JSON schema"),
        ({"grammar": "".join(f'r{n}: "a"' + chr(10) for n in range(300))}, "grammar", "has 300 colons"),
        ({"grammar": "start: " + "(" * 30_000}, "grammar", "is refused by the grammar library"),
        ({"grammar": 'start: start "a"'}, "grammar", "is too complex for the grammar library to follow"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_listed_with_field_reason_and_remedy(fields, field, reason):
    for line, prefix in (
        ({"prompt": "a", **fields}, ""),
        ({"url": "/v1/completions", "body": {"prompt": "a", **fields}}, "body."),
    ):
        bad = read_one(line)
        assert isinstance(bad, BadLine), bad
        assert bad.field == prefix + field
        # The other field's name has the prefix too.
        assert bad.reason.replace("body.", "").startswith(reason)
        assert bad.remedy
        assert not bad.others


def test_a_default_holds_for_lines_that_do_not_say():
    reader = LineReader(SamplingParams(), constraint=default_constraint({"type": "json_object"}))
    lines = [
        {"prompt": "a"},
        {"prompt": "a", "response_format": {"type": "text"}},
        {"prompt": "a", "guided_json": SCHEMA},
    ]
    stored = [job.request.get("constraint") for job in reader.read_mappings(lines)]
    assert stored == [{"kind": "json_object", "value": ""}, None, KEPT]
    (bad,) = reader.read_mappings([{"prompt": "a", "ignore_eos": True}])
    assert isinstance(bad, BadLine)


def test_a_wrong_default_is_named_before_a_line_is_read():
    with pytest.raises(InputError, match=r"response_format\.schema\.not: asks for something"):
        default_constraint({"type": "json_schema", "schema": {"not": {}}})


@pytest.mark.parametrize("fields", [{"guided_json": SCHEMA}, {"guided_json": {"not": {}}}, {"guided_regex": "(a"}])
def test_one_text_is_checked_once(fields):
    """A million lines with one schema, good or bad, cost one check."""
    outcome = constraint_fields._outcome
    outcome.cache_clear()
    for _ in range(5):
        with suppress(InvalidFieldError):
            read_constraint(json.loads(json.dumps(fields)))
    assert (outcome.cache_info().misses, outcome.cache_info().hits) == (1, 4)


@pytest.mark.parametrize(
    "constraint",
    [1, "x", [], {"kind": "xml"}, {"kind": ["regex"]}, {"value": ""}, {"kind": "regex", "value": 1},
     {"kind": "regex", "value": "a", "more": 1}, {"kind": "json_object", "whitespace": "any"}],
)  # fmt: skip
def test_a_stored_constraint_is_read_with_care(constraint):
    with pytest.raises(InvalidFieldError, match="constraint"):
        to_engine_request(1, {"prompt": "a", "seed": 1, "constraint": constraint})
