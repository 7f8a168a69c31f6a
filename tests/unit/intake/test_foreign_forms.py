"""Lines of other providers' batches: taken where they mean the same, else refused by their own names."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.errors import BadLine
from tests.unit.intake.request_lines import read_one

RIVER = [{"role": "user", "content": "Name a river"}]
BRIEF = {"role": "system", "content": "Be brief"}
CHAT = "/v1/chat/completions"


def anthropic(**params):
    return {"custom_id": "a1", "params": {"model": "m", "max_tokens": 8, "messages": RIVER, **params}}


def gemini(**request):
    return {"key": "r1", "request": {"contents": [{"parts": [{"text": "Name a river"}]}], **request}}


def responses(**body):
    return {"custom_id": "t-0", "method": "POST", "url": "/v1/responses", "body": {"input": "Name a river", **body}}


def batch(**envelope):
    return {"custom_id": "t-0", "body": {"model": "m", "messages": RIVER}, **envelope}


@pytest.mark.parametrize(
    "url",
    [
        CHAT,
        "/v1/chat/completions/",
        "/chat/completions",
        "https://api.example.com/v1/chat/completions",
        "https://x.example.com/openai/deployments/my-model/chat/completions?api-version=2024-10-21",
        None,
    ],
)
def test_every_spelling_of_the_chat_endpoint_is_taken(url):
    for line in [batch(url=url)] if url else [batch(), batch(url=None)]:
        item = read_one(line)
        assert (item.request["messages"], item.request["endpoint"]) == (RIVER, CHAT)


@pytest.mark.parametrize("url", ["/completions", "http://h:8000/v1/completions/", None])
def test_every_spelling_of_the_completion_endpoint_is_taken(url):
    item = read_one({"custom_id": "t", "url": url, "body": {"prompt": "Name"}})
    assert (item.request["prompt"], item.request["endpoint"]) == ("Name", "/v1/completions")


@pytest.mark.parametrize(
    "url", ["/v1/embeddings", "chat/completions", "/chat/completionsx", "ftp://a/chat/completions"]
)
def test_other_addresses_are_refused(url):
    assert read_one(batch(url=url)).field == "url"


def test_a_line_of_anthropic():
    content = [{"type": "text", "text": "Name a river", "cache_control": {"type": "ephemeral"}}]
    line = anthropic(
        system=[{"type": "text", "text": "Be brief"}],
        messages=[{"role": "user", "content": content}],
        stop_sequences=["X"],
        temperature=1,
        stream=False,
        thinking={"type": "disabled"},
        metadata={"user_id": "u"},
    )
    item = read_one(line)
    assert item.custom_id == "a1"
    assert item.request["messages"] == [BRIEF, *RIVER]
    assert item.request["sampling"] == {"max_tokens": 8, "temperature": 1, "stop": ["X"]}
    assert item.request["model"] == "m"


def test_a_line_of_gemini():
    contents = [
        {"role": "user", "parts": [{"text": "Hi"}]},
        {"role": "model", "parts": [{"text": "Hello"}]},
        {"role": "user", "parts": [{"text": "Name"}, {"text": "a river"}]},
    ]
    config = {"temperature": 0.5, "topP": 0.9, "top_k": 40.0, "maxOutputTokens": 9, "stopSequences": ["X"], "seed": 3}
    item = read_one(
        gemini(
            contents=contents,
            system_instruction={"parts": [{"text": "Be brief"}]},
            generationConfig={**config, "candidateCount": 4, "responseMimeType": "text/plain"},
        )
    )
    assert item.custom_id == "r1"
    assert [message["content"] for message in item.request["messages"]] == ["Be brief", "Hi", "Hello", "Name\na river"]
    assert [message["role"] for message in item.request["messages"]] == ["system", "user", "assistant", "user"]
    assert item.request["sampling"] == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "max_tokens": 9, "stop": ["X"], "seed": 3, "n": 4
    }  # fmt: skip
    assert read_one(gemini()).request["messages"] == RIVER


def test_a_line_to_openais_responses():
    assert read_one(responses(max_output_tokens=5, store=True, text={"format": {"type": "text"}})).request == {
        "messages": RIVER,
        "sampling": {"max_tokens": 5},
        "metadata": {},
        "endpoint": CHAT,
        "seed": read_one(responses()).request["seed"],
    }
    parts = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Name a river"}]}]
    assert read_one(responses(input=parts, instructions="Be brief")).request["messages"] == [BRIEF, *RIVER]


def test_sharegpt_turns():
    turns = [{"from": "system", "value": "Be brief"}, {"from": "human", "value": "Name a river"}]
    item = read_one({"id": "s1", "conversations": turns, "max_tokens": 4})
    assert (item.custom_id, item.request["messages"]) == ("s1", [BRIEF, *RIVER])
    assert item.request["sampling"] == {"max_tokens": 4}
    item = read_one({"conversations": [*turns, {"from": "gpt", "value": "Elbe"}]})
    assert (item.field, item.reason) == ("conversations", "ends with the assistant's turn")


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (anthropic(tools=[{"name": "x", "type": "bash"}], mystery=1), ["params.mystery", "params.tools[0].type"]),
        (anthropic(max_tokens=0, stop_sequences=[""]), ["params.stop_sequences", "params.max_tokens"]),
        (anthropic(system="s", messages=[{"role": "function", "content": "a"}]), ["params.messages[0].role"]),
        (anthropic(messages=[{"role": "user", "content": [{"type": "image"}]}]), ["params.messages[0].content[0]"]),
        (anthropic(system=[{"type": "image"}]), ["params.system"]),
        (anthropic(messages=[*RIVER, {"role": "assistant", "content": ""}]), ["params.messages[1].content"]),
        ({**anthropic(), "mystery": 1}, ["mystery"]),
        (gemini(tools=[{"x": 1}], mystery=1), ["request.mystery", "request.tools[0].x"]),
        (gemini(generationConfig={"topP": 7, "responseMimeType": "text/x.enum"}),
         ["request.generationConfig.responseMimeType"]),
        (gemini(generationConfig={"topP": 7}), ["request.generationConfig.topP"]),
        (gemini(contents=[{"parts": [{"inlineData": {}}]}]), ["request.contents[0].parts[0]"]),
        (gemini(contents=[{"role": "function", "parts": [{"text": "a"}]}]), ["request.contents[0].role"]),
        ({"key": "", **{k: v for k, v in gemini().items() if k != "key"}}, ["key"]),
        (responses(reasoning={"effort": "deep"}), ["body.reasoning.effort"]),
        (responses(reasoning={"summary": "auto"}), ["body.reasoning.summary"]),
        (responses(max_output_tokens=0), ["body.max_output_tokens"]),
        (responses(input=[{"type": "function_call_output", "output": "x"}]), ["body.input[0].call_id"]),
        (responses(input=[{"type": "item_reference", "id": "x"}]), ["body.input[0].type"]),
        (responses(previous_response_id="r"), ["body.previous_response_id"]),
        (responses(mystery=1), ["body.mystery"]),
        ({"conversations": [{"from": "tool", "value": "a"}]}, ["conversations[0].from"]),
        ({"conversations": [{"from": "human", "value": "a", "weight": 0}]}, ["conversations[0].weight"]),
    ],
)  # fmt: skip
def test_what_has_no_meaning_here_is_refused_by_its_own_name(line, fields):
    item = read_one(line)
    assert isinstance(item, BadLine), item
    assert sorted(fault.field for fault in item.faults) == sorted(fields)


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
@pytest.mark.parametrize(
    ("more", "text"), [({"input": "of Asia"}, "Name a river\n\nof Asia"), ({"input": ""}, "Name a river")]
)
def test_alpaca_is_named_with_a_command_that_makes_lines(more, text):
    line = {"instruction": "Name a river", "output": "Elbe", **more}
    item = read_one(line)
    assert (item.field, item.reason) == ("instruction", "is Alpaca's form, which has no prompt")
    made = subprocess.run(
        ["bash", "-c", item.remedy.removeprefix("make lines with: ")],
        input=json.dumps(line).encode(),
        capture_output=True,
        check=True,
    ).stdout
    assert read_one(made).request["messages"] == [{"role": "user", "content": text}]


names = st.sampled_from(
    ["params", "request", "conversations", "instruction", "input", "key", "id", "url", "body", "contents", "parts",
     "text", "from", "value", "system", "systemInstruction", "generationConfig", "topP", "role", "messages", "content",
     "type", "custom_id", "max_output_tokens", "instructions", "stop_sequences", "tools", "functionDeclarations",
     "name", "parameters", "toolConfig", "functionCallingConfig", "mode", "allowedFunctionNames", "functionCall",
     "args", "functionResponse", "response", "thought", "tool_use_id", "input_schema",
     "tool_calls", "reasoning_content", "responseSchema", "responseMimeType", "properties", "nullable", "anyOf",
     "enum", "propertyOrdering", "call_id", "output", "arguments", "summary", "encrypted_content"]
)  # fmt: skip
leaves = (
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=3)
    | st.sampled_from(["user", "model", "human", "gpt", "/v1/responses", "text", "message", "ANY", "text/x.enum"])
    | st.sampled_from(["function_call", "function_call_output", "reasoning", "assistant"])
    | st.sampled_from(["tool_use", "tool_result", "thinking"])
)  # fmt: skip
lines = st.dictionaries(
    names,
    st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=4), max_leaves=12
    ),
    max_size=4,
)


@pytest.mark.thorough
@given(lines)
@settings(max_examples=500, deadline=None)
def test_any_line_gives_a_job_or_sentences(line):
    item = read_one(json.dumps(line).encode())
    if isinstance(item, BadLine):
        for fault in item.faults:
            assert fault.field
            assert fault.reason
            assert fault.remedy
            assert str(fault).isprintable()
