"""Tools in lines of Anthropic and Gemini become ours; what has no counterpart is refused by its own path.

The conversations are those of the providers' own documents.
"""

from __future__ import annotations

import json

import pytest

from helix_jobs.errors import BadLine
from helix_jobs.new_job import NewJob
from tests.unit.intake.request_lines import read_one

# Anthropic, "Tool use": the weather in San Francisco.
WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather in a given location",
    "input_schema": {
        "type": "object",
        "properties": {
            "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
        "required": ["location"],
    },
}
ASKED = {"role": "user", "content": "What's the weather like in San Francisco?"}
USED = {
    "role": "assistant",
    "content": [
        {"type": "text", "text": "I'll check the current weather in San Francisco for you."},
        {
            "type": "tool_use",
            "id": "toolu_01A09q90qw90lq917835lq9",
            "name": "get_weather",
            "input": {"location": "San Francisco, CA", "unit": "celsius"},
        },
    ],
}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_01A09q90qw90lq917835lq9", "content": "15 degrees"}
ANSWERED = {"role": "user", "content": [RESULT]}

# Gemini, "Function calling": films in Mountain View.
FIND_THEATERS = {
    "name": "find_theaters",
    "description": "find theaters based on location and optionally movie title which is currently playing in theaters",
    "parameters": {
        "type": "OBJECT",
        "properties": {
            "location": {"type": "STRING", "description": "The city and state, e.g. San Francisco, CA"},
            "movie": {"type": "STRING", "nullable": True},
            "rows": {"type": "ARRAY", "items": {"type": "INTEGER"}, "maxItems": "3"},
        },
        "required": ["location"],
    },
}
THEATERS = [
    {"role": "user", "parts": [{"text": "Which theaters in Mountain View show Barbie movie?"}]},
    {
        "role": "model",
        "parts": [
            {
                "functionCall": {"name": "find_theaters", "args": {"location": "Mountain View, CA", "movie": "Barbie"}},
                "thoughtSignature": "c2ln",
            }
        ],
    },
    {
        "role": "user",
        "parts": [
            {
                "functionResponse": {
                    "name": "find_theaters",
                    "response": {"name": "find_theaters", "content": {"theaters": [{"name": "AMC Mountain View 16"}]}},
                }
            }
        ],
    },
]


def anthropic(*messages, **params):
    return {"custom_id": "a1", "params": {"model": "m", "max_tokens": 8, "messages": list(messages), **params}}


def gemini(*contents, **request):
    return {"key": "r1", "request": {"contents": list(contents), **request}}


def of_functions(*functions, **config):
    tools = {"tools": [{"functionDeclarations": list(functions)}]}
    return {**tools, "toolConfig": {"functionCallingConfig": config}} if config else tools


def many(part):
    return [part] * 129


def request_of(line):
    item = read_one(line)
    assert isinstance(item, NewJob), item
    return item.request


def test_a_conversation_of_anthropic_with_a_call_and_its_result():
    request = request_of(anthropic(ASKED, USED, ANSWERED, system="Be brief", tools=[WEATHER]))
    system, asked, used, result = request["messages"]
    assert (system["role"], asked) == ("system", ASKED)
    assert used["content"] == "I'll check the current weather in San Francisco for you."
    (call,) = used["tool_calls"]
    assert (call["id"], call["type"], call["function"]["name"]) == (RESULT["tool_use_id"], "function", "get_weather")
    assert json.loads(call["function"]["arguments"]) == USED["content"][1]["input"]
    assert result == {"role": "tool", "tool_call_id": call["id"], "content": "15 degrees"}
    assert request["tools"][0]["function"]["parameters"] == WEATHER["input_schema"]


def test_results_of_anthropic_stand_before_what_the_user_says():
    calls = [{"type": "tool_use", "id": f"t{n}", "name": "get_weather", "input": {}} for n in (1, 2)]
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}], "is_error": False},
        {"type": "tool_result", "tool_use_id": "t2"},
        {"type": "text", "text": "And tomorrow?"},
    ]
    thought = {"type": "thinking", "thinking": "Two cities.", "signature": "s"}
    used = {"role": "assistant", "content": [thought, *calls]}
    messages = request_of(anthropic(ASKED, used, {"role": "user", "content": results}))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "user"]
    assert messages[1]["reasoning_content"] == "Two cities."
    assert [message["content"] for message in messages[2:]] == ["rain", "", "And tomorrow?"]


def test_a_conversation_of_gemini_with_a_call_and_its_response():
    request = request_of(gemini(*THEATERS, **of_functions(FIND_THEATERS)))
    _, called, response = request["messages"]
    (call,) = called["tool_calls"]
    assert call["function"]["name"] == "find_theaters"
    assert json.loads(call["function"]["arguments"]) == {"location": "Mountain View, CA", "movie": "Barbie"}
    assert response["tool_call_id"] == call["id"]
    assert json.loads(response["content"])["content"]["theaters"] == [{"name": "AMC Mountain View 16"}]
    parameters = request["tools"][0]["function"]["parameters"]
    assert parameters["type"] == "object"
    assert parameters["properties"]["location"]["type"] == "string"
    assert parameters["properties"]["movie"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert parameters["properties"]["rows"] == {"type": "array", "items": {"type": "integer"}, "maxItems": 3}


def test_responses_of_gemini_answer_the_calls_in_their_order_or_by_their_ids():
    calls = [{"functionCall": {"name": "f", "args": {"n": n}}} for n in (1, 2)]
    calls.append({"functionCall": {"id": "own", "name": "f"}})
    answers = [
        {"functionResponse": {"id": "own", "name": "f", "response": {"result": 3}}},
        {"functionResponse": {"name": "f", "response": {"result": 1}}},
        {"functionResponse": {"name": "f", "response": {"result": 2}}},
    ]
    asked = {"parts": [{"text": "hi"}]}
    thought = {"text": "Three calls.", "thought": True}
    line = gemini(asked, {"role": "model", "parts": [thought, *calls]}, {"role": "user", "parts": answers})
    _, called, *responses = request_of(line)["messages"]
    assert called["reasoning_content"] == "Three calls."
    ids = [call["id"] for call in called["tool_calls"]]
    assert len(set(ids)) == 3
    assert [(one["tool_call_id"], one["content"]) for one in responses] == [
        ("own", '{"result": 3}'),
        (ids[0], '{"result": 1}'),
        (ids[1], '{"result": 2}'),
    ]


def test_ids_made_up_for_calls_of_gemini_are_none_of_the_file_s():
    calls = [{"functionCall": {"name": "f"}}, {"functionCall": {"id": "call_1", "name": "f"}}]
    answers = [{"functionResponse": {"id": "call_1", "name": "f", "response": {}}}]
    line = gemini(THEATERS[0], {"role": "model", "parts": calls}, {"role": "user", "parts": answers}, THEATERS[0])
    _, called, response, _ = request_of(line)["messages"]
    assert [call["id"] for call in called["tool_calls"]] == ["call_2", "call_1"]
    assert response["tool_call_id"] == "call_1"


def test_nulls_and_what_is_no_thought_stand_beside_a_call():
    call = {**GEMINI_CALL, "thought": False, "text": None}
    line = gemini(THEATERS[0], {"role": "model", "parts": [call]}, {"role": "user", "parts": [GEMINI_RESPONSE]})
    assert [message["role"] for message in request_of(line)["messages"]] == ["user", "assistant", "tool"]
    used = {**USED, "tool_calls": None, "reasoning_content": None}
    assert "tool_calls" in request_of(anthropic(ASKED, used, ANSWERED))["messages"][1]


@pytest.mark.parametrize("mode", ["AUTO", "NONE"])
def test_a_choice_of_gemini_that_asks_for_nothing_needs_no_tools(mode):
    request = request_of(gemini(THEATERS[0], toolConfig={"functionCallingConfig": {"mode": mode}}))
    assert request.keys().isdisjoint({"tools", "tool_choice"})


LIGHT = {"name": "light", "parametersJsonSchema": {"type": "object", "properties": {"on": {"type": "boolean"}}}}
NAMED = {"type": "function", "function": {"name": "light"}}


@pytest.mark.parametrize(
    ("config", "choice"),
    [
        ({"mode": "AUTO"}, None),
        ({"mode": "ANY"}, "required"),
        ({"mode": "any", "allowedFunctionNames": ["light"]}, NAMED),
        ({"mode": "ANY", "allowed_function_names": ["light", "find_theaters"]}, "required"),
    ],
)
def test_the_choice_of_gemini(config, choice):
    request = request_of(gemini(THEATERS[0], **of_functions(LIGHT, FIND_THEATERS, **config)))
    assert request.get("tool_choice") == choice
    assert len(request["tools"]) == 2


def test_no_function_is_shown_where_gemini_forbids_calls():
    assert "tools" not in request_of(gemini(THEATERS[0], **of_functions(LIGHT, mode="NONE")))


USER = {"role": "user", "content": "hi"}
BAD_NAME = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "no name", "input": {}}]}
BAD_INPUT = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": "x"}]}
OPENAI_CALLS = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
THOUGHT = {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "a"}]}
NOT_TAKEN = "is not a field that is taken here"
GEMINI_CALL = {"functionCall": {"name": "light"}}
GEMINI_RESPONSE = {"functionResponse": {"name": "light", "response": {}}}


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        (anthropic(ASKED, USED, {"role": "user", "content": [{**RESULT, "is_error": True}]}, system="s"),
         "params.messages[2].content[0].is_error", "is a mark that no chat template shows"),
        (anthropic(ASKED, USED, {"role": "user", "content": [{**RESULT, "tool_use_id": "x"}]}, system="s"),
         "params.messages[2].content[0].tool_use_id", "is the id of no call"),
        (anthropic(USER, BAD_NAME, USER), "params.messages[1].content[0].name", "is no name of a function"),
        (anthropic(USER, BAD_INPUT, USER), "params.messages[1].content[0].input", "is not JSON"),
        (anthropic(ASKED, USED), "params.messages[1].content[1]", "stand in the last message"),
        (anthropic(ASKED, USED, {"role": "user", "content": [{**RESULT, "content": [{"type": "image"}]}]}),
         "params.messages[2].content[0].content[0]", "is no text part"),
        (anthropic({"role": "user", "content": [RESULT, {"type": "image"}]}),
         "params.messages[0].content[1]", "is no text part"),
        (anthropic({"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}, USER),
         "params.messages[0].content[0]", "is no text part"),
        (gemini(THEATERS[0], tools=[{"googleSearch": {}}]),
         "request.tools[0].googleSearch", "is a tool that runs at the provider"),
        (gemini(THEATERS[0], **of_functions({"name": "f", "response": {"type": "STRING"}})),
         "request.tools[0].functionDeclarations[0].response", "is not a field that is taken here"),
        (gemini(THEATERS[0], **of_functions({"name": "no name"})),
         "request.tools[0].functionDeclarations[0].name", "is no name of a function"),
        (gemini(THEATERS[0], **of_functions({"name": "f", "parameters": {"type": "STRING"}})),
         "request.tools[0].functionDeclarations[0].parameters.type", "is not object"),
        (gemini(THEATERS[0], **of_functions(*({"name": f"f{n}"} for n in range(200)))),
         "request.tools", "holds 200 tools"),
        (gemini(THEATERS[0], **of_functions(LIGHT, mode="ANY", allowedFunctionNames=["dark"])),
         "request.toolConfig", "names dark, which is none of the tools"),
        (gemini(THEATERS[0], **of_functions(LIGHT, {"name": []}, mode="ANY", allowedFunctionNames=["light", {}])),
         "request.toolConfig.functionCallingConfig.allowedFunctionNames",
         "names an object, which is none of the tools"),
        (gemini(THEATERS[0], **of_functions(LIGHT, FIND_THEATERS, mode="ANY",
                                            allowedFunctionNames=["light", "find_theaters", "dark"])),
         "request.toolConfig.functionCallingConfig.allowedFunctionNames", "names dark, which is none of the tools"),
        (gemini(THEATERS[0], **of_functions(LIGHT, mode="ANY", allowedFunctionNames=["light", "dark"])),
         "request.toolConfig.functionCallingConfig.allowedFunctionNames", "names dark, which is none of the tools"),
        (gemini(THEATERS[0], **of_functions(LIGHT, FIND_THEATERS, mode="ANY", allowedFunctionNames=["light", None])),
         "request.toolConfig.functionCallingConfig.allowedFunctionNames", "names null, which is none of the tools"),
        (gemini(THEATERS[0], **of_functions(LIGHT, mode="VALIDATED")),
         "request.toolConfig.functionCallingConfig.mode", "is no known choice"),
        (gemini(THEATERS[0], **of_functions(LIGHT, FIND_THEATERS, {"name": "g"}, mode="ANY",
                                            allowedFunctionNames=["light", "g"])),
         "request.toolConfig.functionCallingConfig.allowedFunctionNames", "names some functions of several"),
        (gemini(THEATERS[0], {"role": "user", "parts": [GEMINI_RESPONSE]}),
         "request.contents[1].parts[0].functionResponse", "is the response of no call"),
        (gemini({"role": "user", "parts": [GEMINI_CALL]}),
         "request.contents[0].parts[0]", "stands in the content of the other role"),
        (gemini(THEATERS[0], {"role": "model", "parts": [{"functionCall": {"name": "f", "args": []}}]}, THEATERS[0]),
         "request.contents[1].parts[0].functionCall.args", "is a list"),
        (gemini(THEATERS[0], {"role": "model", "parts": [GEMINI_CALL]}),
         "request.contents[1].parts[0].functionCall", "stand in the last message"),
        (anthropic(USER, {**USED, "tool_calls": "junk"}, ANSWERED), "params.messages[1].tool_calls", NOT_TAKEN),
        (anthropic(USER, {**USED, "tool_calls": {}}, ANSWERED), "params.messages[1].tool_calls", NOT_TAKEN),
        (anthropic(USER, {"role": "assistant", "content": "a", "tool_calls": OPENAI_CALLS}, USER),
         "params.messages[1].tool_calls", NOT_TAKEN),
        (anthropic(USER, {**THOUGHT, "reasoning_content": 5}, USER),
         "params.messages[1].reasoning_content", NOT_TAKEN),
        (anthropic(USER, {"role": "assistant", "content": many({"type": "tool_use", "id": "a", "name": "f"})}, USER),
         "params.messages[1].content[0]", "holds 129 calls"),
        (gemini(THEATERS[0], {"role": "model", "parts": many({"functionCall": {"name": "f"}})}, THEATERS[0]),
         "request.contents[1].parts[0].functionCall", "holds 129 calls"),
        (gemini(THEATERS[0], **of_functions({"name": "f", "parameters": "x"})),
         "request.tools[0].functionDeclarations[0].parameters", "is a string"),
        (gemini(THEATERS[0], toolConfig=17), "request.toolConfig", "is no known choice"),
        (gemini(THEATERS[0], toolConfig={"functionCallingConfig": {"mode": "ANY"}}),
         "request.toolConfig", "stands without tools"),
        (gemini(THEATERS[0], tools=[], toolConfig={"functionCallingConfig": {"mode": "ANY"}}),
         "request.toolConfig", "stands without tools"),
        (gemini(THEATERS[0], toolConfig={"functionCallingConfig": {"mode": 1}}),
         "request.toolConfig.functionCallingConfig.mode", "is no known choice"),
        (gemini(THEATERS[0], **of_functions(LIGHT, mode="AUTO", mystery=1)),
         "request.toolConfig.functionCallingConfig.mystery", NOT_TAKEN),
        (gemini(THEATERS[0], **of_functions(LIGHT, mode="AUTO", allowedFunctionNames=["light"])),
         "request.toolConfig.functionCallingConfig.allowedFunctionNames", "stands beside a mode other than ANY"),
        (gemini(THEATERS[0], **of_functions(LIGHT, mode="AUTO", allowed_function_names=["light"])),
         "request.toolConfig.functionCallingConfig.allowed_function_names", "stands beside a mode other than ANY"),
        (gemini(THEATERS[0], **of_functions(LIGHT, mode="ANY", allowed_function_names=0)),
         "request.toolConfig.functionCallingConfig.allowed_function_names", "is a number"),
        (gemini(THEATERS[0], **of_functions(LIGHT, FIND_THEATERS, {"name": "g"}, mode="ANY",
                                            allowed_function_names=["light", "g"])),
         "request.toolConfig.functionCallingConfig.allowed_function_names", "names some functions of several"),
        (gemini(THEATERS[0], **of_functions(LIGHT, mode="ANY"), tool_config={}),
         "request.tool_config", "is given twice, as toolConfig, too"),
        (gemini(THEATERS[0], **of_functions(LIGHT),
                toolConfig={"functionCallingConfig": {"mode": "ANY"}, "function_calling_config": {}}),
         "request.toolConfig.function_calling_config", "is given twice, as functionCallingConfig, too"),
        (gemini(THEATERS[0], **of_functions(LIGHT, mode="ANY", allowedFunctionNames=[], allowed_function_names=[])),
         "request.toolConfig.functionCallingConfig.allowed_function_names",
         "is given twice, as allowedFunctionNames, too"),
        (gemini(THEATERS[0], generation_config=0), "request.generation_config", "is a number"),
        (gemini(THEATERS[0], generationConfig={"topP": 0.5}, generation_config={}),
         "request.generation_config", "is given twice, as generationConfig, too"),
        (gemini(THEATERS[0], generationConfig={"topP": 0.5, "top_p": 1}),
         "request.generationConfig.top_p", "is given twice, as topP, too"),
        (gemini(THEATERS[0], {"role": "model", "parts": [{**GEMINI_CALL, "mystery": 1}]}, THEATERS[0]),
         "request.contents[1].parts[0].mystery", NOT_TAKEN),
        (gemini(THEATERS[0], {"role": "model", "parts": [{**GEMINI_CALL, "thought": True}]}, THEATERS[0]),
         "request.contents[1].parts[0].thought", "stands beside functionCall"),
        (gemini(THEATERS[0], {"role": "model", "parts": [{**GEMINI_CALL, "function_call": {"name": "g"}}]}, USER),
         "request.contents[1].parts[0].function_call", "stands beside functionCall"),
        (gemini(THEATERS[0], {"role": "model", "parts": [{**GEMINI_CALL, "text": "a"}]}, THEATERS[0]),
         "request.contents[1].parts[0].text", "stands beside functionCall"),
        (gemini(THEATERS[0], {"role": "model", "parts": [{"function_call": {"name": "f", "id": 7}}]}, THEATERS[0]),
         "request.contents[1].parts[0].function_call.id", "is no short string"),
        (gemini(THEATERS[0], {"role": "model", "parts": [{"function_call": {}}]}, THEATERS[0]),
         "request.contents[1].parts[0].function_call.name", "is missing"),
        (gemini(THEATERS[0], {"role": "user", "parts": [{"function_response": {"name": "f", "response": {}}}]}),
         "request.contents[1].parts[0].function_response", "is the response of no call"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_by_its_own_path(line, field, reason):
    item = read_one(line)
    assert isinstance(item, BadLine), item
    assert (field, reason) in [(fault.field, fault.reason) for fault in item.faults]
