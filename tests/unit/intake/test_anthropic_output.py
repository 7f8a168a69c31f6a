"""What a line of Anthropic says of its output: a JSON schema, an effort, and tools that are strict."""

from __future__ import annotations

import json

import pytest

from helix_jobs.errors import BadLine
from helix_jobs.new_job import NewJob
from tests.unit.intake.request_lines import read_one

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
FORM = {"type": "json_schema", "schema": SCHEMA}
BAD_FORM = {"type": "json_schema", "schema": {"type": "object", "properties": {"x": {"uniqueItems": True}}}}
TOOL = {"name": "look_up", "description": "Find", "input_schema": SCHEMA}


def line(**params):
    messages = [{"role": "user", "content": "Name a river"}]
    return {"custom_id": "a", "params": {"model": "m", "max_tokens": 8, "messages": messages, **params}}


def request_of(**params):
    item = read_one(line(**params))
    assert isinstance(item, NewJob), item
    return item.request


@pytest.mark.parametrize("params", [{"output_config": {"format": FORM}}, {"output_format": FORM, "output_config": {}}])
def test_the_form_of_an_answer(params):
    constraint = request_of(**params)["constraint"]
    assert (constraint["kind"], json.loads(constraint["value"])) == ("json_schema", SCHEMA)


@pytest.mark.parametrize("effort", ["low", "xhigh", "max"])
def test_an_effort(effort):
    assert request_of(output_config={"effort": effort, "format": None})["reasoning"] == {"effort": effort}
    thinking = {"type": "enabled", "budget_tokens": 64}
    both = request_of(output_config={"effort": effort}, thinking=thinking)["reasoning"]
    assert both == {"effort": effort, "enabled": True, "max_tokens": 64}


def test_a_strict_tool_is_openai_s():
    (tool,) = request_of(tools=[{**TOOL, "strict": True}])["tools"]
    assert tool == {
        "type": "function",
        "function": {"name": "look_up", "description": "Find", "strict": True, "parameters": SCHEMA},
    }


@pytest.mark.parametrize(
    ("params", "field", "reason"),
    [
        ({"output_config": "high"}, "output_config", "is a string"),
        ({"output_config": {"effort": "deep"}}, "output_config.effort", "is no known effort"),
        ({"output_config": {"task_budget": {"total": 1}}}, "output_config.task_budget",
         "is not a field that is taken here"),
        ({"output_config": {"format": "json"}}, "output_config.format", "is a string"),
        ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type",
         "is none of Anthropic's"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema", "is missing"),
        ({"output_format": {**FORM, "name": "x"}}, "output_format.name", "is not a field that is taken here"),
        ({"output_config": {"format": BAD_FORM}}, "output_config.format.schema.properties.x.uniqueItems",
         "asks for something that a grammar cannot keep"),
        ({"output_format": BAD_FORM}, "output_format.schema.properties.x.uniqueItems",
         "asks for something that a grammar cannot keep"),
        ({"output_format": FORM, "output_config": {"format": FORM}}, "output_format",
         "stands beside params.output_config.format"),
        ({"output_config": {"format": FORM}, "tools": [TOOL]}, "output_config.format", "stands beside tools"),
        ({"tools": [{**TOOL, "strict": "yes"}]}, "tools[0].strict", "is a string"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_told_by_its_path_in_the_line(params, field, reason):
    item = read_one(line(**params))
    assert isinstance(item, BadLine), item
    assert (item.field, item.reason) == (f"params.{field}", reason)


def test_all_faults_are_told_at_once():
    item = read_one(line(output_config={"mystery": 1, "format": []}, output_format={"type": "text"}))
    assert isinstance(item, BadLine), item
    fields = ["params.output_config.mystery", "params.output_format", "params.output_format.type"]
    assert sorted(fault.field for fault in item.faults) == fields
