"""OpenAI's ``allowed_tools``: some of the tools may be called, and a grammar sees to it where one must be."""

from __future__ import annotations

import pytest

from helix_jobs.engine.text.call_grammar import call_constraint
from helix_jobs.errors import BadLine
from helix_jobs.intake.stored_requests import to_engine_request
from helix_jobs.new_job import NewJob
from tests.unit.intake.request_lines import read_one

QUESTION = [{"role": "user", "content": "Name a river"}]
BAD = {"type": "object", "properties": {"x": {"uniqueItems": True}}}


def named(name):
    return {"type": "function", "function": {"name": name}}


TOOLS = [named("look_up"), named("measure"), named("forget")]


def chat(choice, tools=TOOLS):
    body = {"messages": QUESTION, "tools": tools, "tool_choice": choice}
    return {"custom_id": "a", "url": "/v1/chat/completions", "body": body}


def responses(choice, tools=TOOLS):
    flat = [{"type": "function", **tool["function"]} for tool in tools]
    return {"custom_id": "a", "url": "/v1/responses", "body": {"input": "a", "tools": flat, "tool_choice": choice}}


def allowed(mode, *names):
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


def flat(mode, *names):
    return {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": name} for name in names]}


def tool_use_of(line):
    item = read_one(line)
    assert isinstance(item, NewJob), item
    return to_engine_request(1, item.request).tools


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_these_are_shown_and_may_be_called(mode):
    for line in (
        chat(allowed(mode, "forget", "look_up", "forget")),
        responses(flat(mode, "forget", "look_up")),
        {"messages": QUESTION, "tools": TOOLS, "tool_choice": allowed(mode, "look_up", "forget")},
    ):
        tools = tool_use_of(line)
        assert tools.tools == (TOOLS[0], TOOLS[2])
        assert (tools.is_required, tools.only, tools.is_parallel) == (mode == "required", None, True)


def test_the_grammar_of_a_call_that_must_be_knows_no_other():
    grammar = call_constraint(tool_use_of(chat(allowed("required", "look_up", "forget"))), "hermes", {}).value
    assert "look_up" in grammar
    assert "forget" in grammar
    assert "measure" not in grammar


@pytest.mark.parametrize(
    ("choice", "field", "reason"),
    [
        ({"type": "allowed_tools"}, ".allowed_tools", "is missing"),
        ({"type": "allowed_tools", "allowed_tools": []}, ".allowed_tools", "is a list"),
        ({**allowed("auto", "look_up"), "mode": "auto"}, ".mode", "is not supported"),
        (allowed("none", "look_up"), ".allowed_tools.mode", "is no known mode"),
        (allowed(None, "look_up"), ".allowed_tools.mode", "is no known mode"),
        (allowed(["auto"], "look_up"), ".allowed_tools.mode", "is no known mode"),
        (allowed("auto"), ".allowed_tools.tools", "is empty"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}, ".allowed_tools.tools", "is null"),
        (allowed("auto", "look_up", "go"), ".allowed_tools.tools[1]", "names go, which is none of the tools"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "mcp"}]}},
         ".allowed_tools.tools[0]", "is no function"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(choice, field, reason):
    item = read_one(chat(choice))
    assert isinstance(item, BadLine), item
    assert (item.field, item.reason) == (f"body.tool_choice{field}", reason)


@pytest.mark.parametrize(
    ("choice", "field"),
    [
        (flat("auto", "go"), "tools[0]"),
        (flat("never", "look_up"), "mode"),
        ({**flat("auto", "look_up"), "mystery": 1}, "mystery"),
        ({"type": "allowed_tools", "mode": "auto", "tools": "x"}, "tools"),
    ],
)
def test_what_is_wrong_in_responses_has_its_path_there(choice, field):
    item = read_one(responses(choice))
    assert isinstance(item, BadLine), item
    assert item.field == f"body.tool_choice.{field}"


def test_parameters_of_tools_that_must_be_called_keep_their_place_in_the_line():
    tools = [named("look_up"), {"type": "function", "function": {"name": "measure", "parameters": BAD}}]
    item = read_one(chat(allowed("required", "measure"), tools))
    assert isinstance(item, BadLine), item
    assert item.field == "body.tools[1].function.parameters.properties.x.uniqueItems"
    assert tool_use_of(chat(allowed("required", "look_up"), tools)).tools == (tools[0],)


def test_without_tools_there_is_nothing_to_allow():
    item = read_one(chat(allowed("auto", "look_up"), []))
    assert isinstance(item, BadLine), item
    assert (item.field, item.reason) == ("body.tool_choice", "stands without tools")
