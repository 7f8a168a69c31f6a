"""Streamed answers parse as OpenAI's own types."""

from __future__ import annotations

import json
from typing import Any

from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from helix_jobs.api.chunks import Chunks
from helix_jobs.api.growing_answer import Delta

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CALL = {"id": "call_1", "type": "function", "function": {"name": "wait", "arguments": "{}"}}


def values(event: bytes) -> dict[str, Any]:
    text = event.decode()
    assert text.startswith("data: ")
    assert text.endswith("\n\n")
    assert text.count("\n") == 2, "an event is one line"
    return json.loads(text[6:])


def test_a_chat() -> None:
    chunks = Chunks(5, "m", 9, is_chat=True, has_usage=True)
    first = ChatCompletionChunk.model_validate(values(chunks.grown(Delta(0, "hm", "Elbe\u2028\n"))), strict=True)
    assert (first.id, first.choices[0].delta.role, first.choices[0].delta.content) == (
        "chatcmpl-5",
        "assistant",
        "Elbe\u2028\n",
    )
    assert first.choices[0].delta.model_extra == {"reasoning": "hm", "reasoning_content": "hm"}
    choice = {"index": 0, "message": {"content": "Elbe\u2028\n", "tool_calls": [CALL]}, "finish_reason": "tool_calls"}
    last = ChatCompletionChunk.model_validate(values(chunks.ended(choice, Delta(0))))
    assert last.choices[0].delta.role is None
    assert last.choices[0].delta.tool_calls is not None
    assert last.choices[0].delta.tool_calls[0].index == 0
    assert last.choices[0].finish_reason == "tool_calls"
    usage = ChatCompletionChunk.model_validate(values(chunks.usage({"usage": USAGE})))
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.total_tokens == 5


def test_an_answer_of_no_characters_opens_and_ends() -> None:
    chunks = Chunks(5, "m", 9, is_chat=True, has_usage=False)
    choice = {"index": 1, "message": {"content": ""}, "finish_reason": "stop", "logprobs": None}
    only = ChatCompletionChunk.model_validate(values(chunks.ended(choice, Delta(1))))
    assert only.choices[0].delta.role == "assistant"
    assert only.choices[0].delta.content == ""
    assert chunks.usage({"usage": USAGE}) == b""
    assert "usage" not in values(chunks.grown(Delta(1, "", "x")))


def test_a_completion() -> None:
    chunks = Chunks(5, "m", 9, is_chat=False, has_usage=False)
    part = values(chunks.grown(Delta(0, "", "Elbe")))
    assert part["choices"] == [{"index": 0, "text": "Elbe", "logprobs": None, "finish_reason": None}]
    end = Completion.model_validate(
        values(chunks.ended({"text": "Elbe.", "finish_reason": "length"}, Delta(0, "", ".")))
    )
    assert (end.choices[0].text, end.choices[0].finish_reason) == (".", "length")


def test_what_else_was_asked_about_an_answer_comes_with_its_end() -> None:
    chunks = Chunks(5, "m", 9, is_chat=False, has_usage=False)
    asked: dict[str, Any] = {"prompt_logprobs": [None], "scores": {"yes": -0.5}}
    end = values(chunks.ended({"text": "Elbe", "finish_reason": "stop", **asked}, Delta(0, "", "Elbe")))
    assert end["choices"] == [{"index": 0, "text": "Elbe", "logprobs": None, **asked, "finish_reason": "stop"}]
    chat = Chunks(5, "m", 9, is_chat=True, has_usage=False)
    choice = {"index": 0, "message": {"content": "Elbe"}, "finish_reason": "stop"}
    assert values(chat.ended(choice, Delta(0, "", "Elbe"), {"prompt_logprobs": [None]}))["prompt_logprobs"] == [None]
