"""Tools, calls and thinking in lines of all forms: what is stored, what reaches the engine, what is refused."""

from __future__ import annotations

import io
import json

import pytest

from helix_jobs.engine.chat_options import ReasoningOptions
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import BadLine, InvalidFieldError
from helix_jobs.intake.limits import Limits
from helix_jobs.intake.lines import LineReader
from helix_jobs.intake.stored_requests import to_engine_request
from tests.unit.intake.request_lines import read_one

QUESTION = [{"role": "user", "content": "Name a river"}]
SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Find", "parameters": SCHEMA}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"q": "Elbe"}'}}
CALLED = [
    *QUESTION,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "1,094 km"}]},
]
NAMED = {"type": "function", "function": {"name": "look_up"}}


def native(**fields):
    return {"messages": QUESTION, **fields}


def openai(**body):
    return {"custom_id": "q", "url": "/v1/chat/completions", "body": {"messages": QUESTION, **body}}


def engine_request(line):
    item = read_one(line)
    assert not isinstance(item, BadLine), item
    return to_engine_request(7, json.loads(json.dumps({"seed": 1, **item.request})))


@pytest.mark.parametrize("form", [native, openai])
@pytest.mark.parametrize(
    ("fields", "is_required", "only", "is_parallel"),
    [
        ({}, False, None, True),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, False, None, False),
        ({"tool_choice": "required"}, True, None, True),
        ({"tool_choice": "any"}, True, None, True),
        ({"tool_choice": NAMED}, False, "look_up", True),
    ],
)
def test_tools_reach_the_engine(form, fields, is_required, only, is_parallel):
    tools = engine_request(form(tools=[TOOL], **fields)).tools
    assert tools.tools == (TOOL,)
    assert (tools.is_required, tools.only, tools.is_parallel) == (is_required, only, is_parallel)
    assert tools.parameters == {"look_up": SCHEMA}


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": None}, {"tools": [TOOL], "tool_choice": "none"}])
def test_no_tools_store_nothing(fields):
    stored = read_one(native(parallel_tool_calls=True, **fields)).request
    assert stored.keys().isdisjoint({"tools", "tool_choice", "parallel_tool_calls"})
    assert engine_request(native(**fields)).tools is None


def with_parameter(**schema):
    function = {"name": "look_up", "parameters": {"type": "object", "properties": {"q": schema}}}
    return {"type": "function", "function": function}


@pytest.mark.parametrize(("form", "prefix"), [(native, ""), (openai, "body.")])
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_the_parameters_of_a_call_that_must_be_made_are_checked_as_a_schema(form, prefix, choice):
    item = read_one(form(tools=[with_parameter(**{"not": {}})], tool_choice=choice))
    assert isinstance(item, BadLine)
    assert item.field == f"{prefix}tools[0].function.parameters.properties.q.not"
    assert item.reason == "asks for something that a grammar cannot keep"


def test_parameters_that_no_call_is_held_to_may_say_anything():
    others = [with_parameter(**{"not": {}}), {"type": "function", "function": {"name": "wait"}}]
    assert engine_request(native(tools=others[:1])).tools.parameters["look_up"]["properties"]["q"] == {"not": {}}
    named = {"type": "function", "function": {"name": "wait"}}
    assert engine_request(native(tools=others, tool_choice=named)).tools.only == "wait"


def test_words_that_ask_for_nothing_go_from_parameters_that_are_kept():
    line = native(tools=[with_parameter(type="array", uniqueItems=False)], tool_choice="required")
    assert engine_request(line).tools.parameters["look_up"]["properties"]["q"] == {"type": "array"}


def test_nulls_in_a_tool_are_left_out_and_its_order_stays():
    tool = {"type": "function", "function": {"parameters": None, "strict": True, "name": "wait", "description": None}}
    (stored,) = engine_request(native(tools=[tool])).tools.tools
    assert stored == {"type": "function", "function": {"strict": True, "name": "wait"}}
    assert list(stored["function"]) == ["strict", "name"]


def nested(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"tools": TOOL}, "tools", "is an object"),
        ({"tools": [TOOL] * 129}, "tools", "holds 129 tools"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "is given twice"),
        ({"tools": ["x"]}, "tools[0]", "is a string"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "is no function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "is missing"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "is no name"),
        ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "tools[0].function.name", "is no name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "x": 1}}]}, "tools[0].function.x", "is not"),
        ({"tools": [{"type": "function", "function": {"name": "a", "description": 1}}]},
         "tools[0].function.description", "is a number"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "tools[0].function.parameters",
         "is a list"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]},
         "tools[0].function.parameters.type", "is not object"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"properties": [1]}}}]},
         "tools[0].function.parameters.properties", "does not hold schemas"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"required": [1]}}}]},
         "tools[0].function.parameters.required", "is no list of names"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": nested(40)}}]},
         "tools[0].function.parameters", "is nested too deeply"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice", "is no known choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice", "is no known choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "go"}}}, "tool_choice", "names go"),
        ({"tool_choice": "required"}, "tool_choice", "stands without tools"),
        ({"tools": [], "tool_choice": NAMED}, "tool_choice", "stands without tools"),
        ({"tools": [TOOL], "parallel_tool_calls": 1}, "parallel_tool_calls", "is a number"),
        ({"functions": [{"name": "a"}]}, "functions", "asks for something"),
        ({"function_call": {"name": "a"}}, "function_call", "asks for something"),
        ({"reasoning_effort": "deep"}, "reasoning_effort", "is no known effort"),
        ({"reasoning_effort": 1}, "reasoning_effort", "is no known effort"),
        ({"enable_thinking": "no"}, "enable_thinking", "is a string"),
        ({"enable_thinking": True, "reasoning_effort": "none"}, "enable_thinking", "contradicts reasoning_effort"),
        ({"enable_thinking": False, "reasoning_effort": "low"}, "enable_thinking", "contradicts reasoning_effort"),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, "enable_thinking", "differs"),
        ({"max_reasoning_tokens": -1}, "max_reasoning_tokens", "is out of range"),
        ({"max_reasoning_tokens": 1.5}, "max_reasoning_tokens", "is a number"),
        ({"max_reasoning_tokens": True}, "max_reasoning_tokens", "is a boolean"),
        ({"thinking_token_budget": 2**40}, "thinking_token_budget", "is out of range"),
        ({"max_reasoning_tokens": 1, "thinking_token_budget": 2}, "thinking_token_budget", "differs from max"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(fields, field, reason):
    for form, prefix in ((native, ""), (openai, "body.")):
        item = read_one(form(**fields))
        assert isinstance(item, BadLine)
        assert (item.field, item.reason[: len(reason)]) == (prefix + field, reason)
        assert item.remedy


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"reasoning_effort": "low"}, ReasoningOptions(effort="low")),
        ({"enable_thinking": False}, ReasoningOptions(enabled=False)),
        ({"max_reasoning_tokens": 0}, ReasoningOptions(max_tokens=0)),
        ({"thinking_token_budget": "64.0"}, ReasoningOptions(max_tokens=64)),
        ({"max_reasoning_tokens": 8, "thinking_token_budget": 8.0}, ReasoningOptions(max_tokens=8)),
        ({"enable_thinking": True, "reasoning_effort": "high"}, ReasoningOptions(effort="high", enabled=True)),
        ({"enable_thinking": None, "reasoning_effort": None}, None),
    ],
)
def test_thinking_reaches_the_engine(fields, options):
    assert engine_request(native(**fields)).reasoning == options
    assert engine_request(openai(**fields)).reasoning == options


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL]}, {"tool_choice": "required"}, {"reasoning_effort": "none"}, {"enable_thinking": False},
        {"max_reasoning_tokens": 0}, {"continue_final_message": True}, {"add_generation_prompt": False},
    ],
)  # fmt: skip
def test_a_prompt_takes_no_field_of_a_chat(fields):
    (name,) = fields
    item = read_one({"prompt": "a", **fields})
    assert (item.field, item.reason) == (name, "stands beside prompt")
    nothing = {"tools": [], "tool_choice": "none", "continue_final_message": False, "add_generation_prompt": True}
    assert read_one({"prompt": "a", **nothing, "enable_thinking": None}).request["prompt"] == "a"


def test_calls_and_their_results_are_stored_in_openais_form():
    for form in (native, openai):
        request = engine_request(form(messages=CALLED))
        assert request.messages == (
            *QUESTION,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "1,094 km", "tool_call_id": "c1"},
        )


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_an_earlier_answer_may_come_back_with_its_thinking(name):
    answer = {
        "role": "assistant",
        "content": "Elbe",
        name: "hm",
        "refusal": None,
        "tool_calls": [],
        "function_call": None,
    }
    request = engine_request(native(messages=[*QUESTION, answer, *QUESTION]))
    assert request.messages[1] == {"role": "assistant", "content": "Elbe", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("arguments", "stored"),
    [('{"q":1}', '{"q":1}'), ({"q": "é"}, '{"q": "é"}'), ("", "{}"), (None, "{}"), (" ", "{}"), ({}, "{}")],
)
def test_arguments_are_stored_as_text(arguments, stored):
    call = {"id": "c1", "function": {"name": "look_up", "arguments": arguments}, "index": 0}
    messages = [*QUESTION, {"role": "assistant", "tool_calls": [call]}, {**CALLED[2]}]
    kept = engine_request(native(messages=messages)).messages[1]["tool_calls"][0]
    assert kept == {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": stored}}


def with_call(**changes):
    return [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [{**CALL, **changes}]}, CALLED[2]]


def with_function(**changes):
    return with_call(function={**CALL["function"], **changes})


@pytest.mark.parametrize(
    ("messages", "field", "reason"),
    [
        (with_call(id=None), "messages[1].tool_calls[0].id", "is missing"),
        (with_call(id="x" * 257), "messages[1].tool_calls[0].id", "is no short string"),
        (with_call(type="custom"), "messages[1].tool_calls[0]", "is no call of a function"),
        (with_call(more=1), "messages[1].tool_calls[0].more", "is not supported"),
        (with_function(name="a b"), "messages[1].tool_calls[0].function.name", "is no name of a function"),
        (with_function(arguments="{"), "messages[1].tool_calls[0].function.arguments", "is not JSON"),
        (with_function(arguments="[1]"), "messages[1].tool_calls[0].function.arguments", "is no object"),
        (with_function(arguments=3), "messages[1].tool_calls[0].function.arguments", "is a number"),
        (with_function(arguments="[" * 5000), "messages[1].tool_calls[0].function.arguments", "is not JSON"),
        (with_function(arguments=json.dumps(nested(40))), "messages[1].tool_calls[0].function.arguments",
         "is nested too deeply"),
        ([*QUESTION, {"role": "assistant", "content": "", "tool_calls": "x"}, *QUESTION], "messages[1].tool_calls",
         "is a string"),
        ([*QUESTION, {"role": "tool", "content": "a", "tool_call_id": "c1"}], "messages[1].tool_call_id",
         "is the id of no call"),
        ([*QUESTION, {"role": "tool", "content": "a"}], "messages[1].tool_call_id", "is missing"),
        ([{"role": "user", "content": "a", "tool_calls": [CALL]}], "messages[0].tool_calls", "is not supported"),
        ([*QUESTION, {"role": "assistant", "content": "a", "function_call": {"name": "a"}}, *QUESTION],
         "messages[1].function_call", "is not supported"),
        ([*QUESTION, {"role": "assistant", "content": "a", "reasoning": 1}, *QUESTION], "messages[1].reasoning",
         "is a number"),
    ],
)  # fmt: skip
def test_messages_that_hang_together_wrongly_are_refused(messages, field, reason):
    item = read_one(native(messages=messages))
    assert isinstance(item, BadLine)
    assert (item.field, item.reason) == (field, reason)
    with pytest.raises(InvalidFieldError):
        to_engine_request(7, {"seed": 1, "messages": messages})


def test_tools_and_calls_count_as_the_prompts_characters():
    line = json.dumps(native(messages=CALLED, tools=[TOOL])).encode()
    for limit, is_bad in ((100, True), (1000, False)):
        (item,) = LineReader(SamplingParams(), Limits(prompt_chars=limit)).read(io.BytesIO(line))
        assert isinstance(item, BadLine) == is_bad


ANTHROPIC_TOOL = {"name": "look_up", "description": "Find", "input_schema": SCHEMA}


def anthropic(**params):
    return {"custom_id": "a", "params": {"model": "m", "max_tokens": 8, "messages": QUESTION, **params}}


@pytest.mark.parametrize(
    ("choice", "is_required", "only", "is_parallel"),
    [
        ({"type": "auto"}, False, None, True),
        ({"type": "any", "disable_parallel_tool_use": True}, True, None, False),
        ({"type": "tool", "name": "look_up"}, False, "look_up", True),
    ],
)
def test_anthropics_tools_are_ours(choice, is_required, only, is_parallel):
    tools = engine_request(anthropic(tools=[ANTHROPIC_TOOL], tool_choice=choice)).tools
    assert tools.tools == (TOOL,)
    assert (tools.is_required, tools.only, tools.is_parallel) == (is_required, only, is_parallel)
    assert engine_request(anthropic(tools=[ANTHROPIC_TOOL], tool_choice={"type": "none"})).tools is None


def responses(**body):
    return {"custom_id": "r", "url": "/v1/responses", "body": {"input": "Name a river", **body}}


def gemini(**config):
    contents = [{"role": "user", "parts": [{"text": "Name a river"}]}]
    return {"key": "g", "request": {"contents": contents, "generationConfig": config}}


def test_tools_and_effort_of_responses_are_ours():
    flat = {"type": "function", **TOOL["function"]}
    request = engine_request(responses(tools=[flat], tool_choice={"type": "function", "name": "look_up"}))
    assert (request.tools.tools, request.tools.only) == ((TOOL,), "look_up")
    assert engine_request(responses(reasoning={"effort": "low", "summary": None})).reasoning.effort == "low"


def test_budgets_of_other_providers_are_ours():
    thinking = engine_request(anthropic(thinking={"type": "enabled", "budget_tokens": 1024})).reasoning
    assert thinking == ReasoningOptions(enabled=True, max_tokens=1024)
    assert engine_request(anthropic(thinking={"type": "disabled"})).reasoning is None
    config = {"thinkingBudget": 512, "includeThoughts": True}
    assert engine_request(gemini(thinkingConfig=config)).reasoning == ReasoningOptions(max_tokens=512)
    assert engine_request(gemini(thinking_config={"thinking_budget": -1})).reasoning is None


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (anthropic(tools=[{"name": "a b", "input_schema": {}}]), "params.tools[0].name"),
        (anthropic(tools=[{"name": "a", "input_schema": {"type": "string"}}]), "params.tools[0].input_schema.type"),
        (anthropic(tools=[{"name": "a", "cache_control": {}}]), "params.tools[0].cache_control"),
        (anthropic(tools=[{"name": "a", "type": "bash_20250124"}]), "params.tools[0].type"),
        (anthropic(tools=[ANTHROPIC_TOOL], tool_choice={"type": "tool", "name": "go"}), "params.tool_choice"),
        (anthropic(tools=[ANTHROPIC_TOOL], tool_choice="auto"), "params.tool_choice"),
        (anthropic(tools={}), "params.tools"),
        (anthropic(thinking={"type": "adaptive"}), "params.thinking"),
        (anthropic(thinking={"type": "enabled", "budget_tokens": -5}), "params.thinking.budget_tokens"),
        (responses(tools=[{"type": "function", "name": "a b"}]), "body.tools[0].name"),
        (responses(tools=[{"type": "web_search"}]), "body.tools[0]"),
        (responses(reasoning=5), "body.reasoning"),
        (gemini(thinkingConfig={"thinkingBudget": "x"}), "request.generationConfig.thinkingConfig.thinkingBudget"),
        (gemini(thinkingConfig={"thinkingLevel": "low"}), "request.generationConfig.thinkingConfig.thinkingLevel"),
        (gemini(thinkingConfig=[]), "request.generationConfig.thinkingConfig"),
    ],
)
def test_faults_of_foreign_tools_have_their_own_names(line, field):
    item = read_one(line)
    assert isinstance(item, BadLine), item
    assert item.field == field
