"""OpenAI's own types parse chat answers with thinking and calls."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from openai.types.chat import ChatCompletion

from helix_jobs.json_line import json_line
from helix_jobs.results.export import result_row
from helix_jobs.results.openai import openai_line
from tests.unit.results.job_results import SUCCEEDED

CALLS = [{"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"q": "é"}'}}]
CHAT = replace(SUCCEEDED, request={"messages": [{"role": "user", "content": "Name a river"}], "metadata": {}})


def parsed(*choices):
    body = json.loads(json_line(openai_line(choices)))["response"]["body"]
    return ChatCompletion.model_validate(body, strict=True), body


def test_calls_stand_in_the_message_and_an_empty_content_is_null():
    completion, _ = parsed(replace(CHAT, output_text="", finish_reason="tool_calls", tool_calls=CALLS))
    (choice,) = completion.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, call.function.arguments) == ("function", "look_up", '{"q": "é"}')
    words, _ = parsed(replace(CHAT, output_text="Look:", finish_reason="tool_calls", tool_calls=CALLS))
    assert words.choices[0].message.content == "Look:"


def test_thinking_stands_beside_the_content_and_is_counted():
    completion, body = parsed(replace(CHAT, reasoning_text="hm", reasoning_tokens=3))
    message = completion.choices[0].message
    assert (message.content, message.reasoning_content, message.reasoning) == (CHAT.output_text, "hm", "hm")
    assert completion.usage.completion_tokens_details.reasoning_tokens == 3
    assert body["usage"]["completion_tokens"] == CHAT.completion_tokens


def test_the_thinking_of_all_choices_is_counted():
    thought = replace(CHAT, reasoning_text="hm", reasoning_tokens=3)
    completion, _ = parsed(thought, replace(thought, choice=1, reasoning_text=None, reasoning_tokens=0))
    assert completion.usage.completion_tokens_details.reasoning_tokens == 3
    assert [choice.message.model_extra.get("reasoning_content") for choice in completion.choices] == ["hm", None]


def test_an_answer_of_a_model_that_does_not_think_has_nothing_of_it():
    completion, body = parsed(CHAT)
    assert completion.usage.completion_tokens_details is None
    assert body["choices"][0]["message"] == {"role": "assistant", "content": CHAT.output_text, "refusal": None}


@pytest.mark.parametrize("name", ["reasoning_text", "reasoning_tokens", "tool_calls"])
def test_the_columns_hold_the_parts(name):
    row = result_row(replace(CHAT, reasoning_text="hm", reasoning_tokens=3, tool_calls=CALLS))
    assert row[name] == {"reasoning_text": "hm", "reasoning_tokens": 3, "tool_calls": CALLS}[name]
