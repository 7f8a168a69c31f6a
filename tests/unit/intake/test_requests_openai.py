"""OpenAI Batch lines: what is taken, what is refused and why."""

from __future__ import annotations

import io
import json

import pytest

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import BadLine
from helix_jobs.intake.lines import LineReader

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def line(url: str = CHAT, /, outer: dict | None = None, **body: object) -> dict:
    question = {"messages": [{"role": "user", "content": "Hi"}]} if url == CHAT else {"prompt": "Hi"}
    return {"custom_id": "a", "method": "POST", "url": url, "body": {"model": "m", **question, **body}, **(outer or {})}


def read_one(values: dict):
    (item,) = LineReader(SamplingParams()).read(io.BytesIO(json.dumps(values).encode()))
    return item


def test_a_chat_line():
    item = read_one(line(max_completion_tokens=9, temperature=1, seed=3, metadata={"k": "v"}))
    assert item.custom_id == "a"
    assert item.request == {
        "messages": [{"role": "user", "content": "Hi"}],
        "sampling": {"max_tokens": 9, "temperature": 1, "seed": 3},
        "metadata": {"k": "v"},
        "endpoint": CHAT,
        "model": "m",
        "seed": 3,
    }


def test_a_completion_line():
    item = read_one(line(TEXT, max_tokens=4, top_k=5))
    assert item.request["prompt"] == "Hi"
    assert item.request["endpoint"] == TEXT
    assert item.request["sampling"] == {"max_tokens": 4, "top_k": 5}


def test_priority_and_metadata_stand_beside_the_body():
    item = read_one(line(outer={"priority": 9, "metadata": {"a": 1}}, metadata={"a": 2, "b": 3}))
    assert item.priority == 9
    assert item.request["metadata"] == {"a": 1, "b": 3}


def test_custom_id_and_method_may_be_left_out():
    values = line()
    del values["custom_id"], values["method"]
    assert read_one(values).custom_id is None


@pytest.mark.parametrize(
    "body",
    [
        {"user": "u", "store": True, "service_tier": "auto", "stream_options": None, "parallel_tool_calls": True},
        {
            "n": 1,
            "stream": False,
            "logprobs": False,
            "tools": [],
            "response_format": {"type": "text"},
            "logit_bias": {},
        },
        {"n": None, "stream": None, "logprobs": None, "tools": None, "response_format": None, "audio": None},
        {"max_tokens": 5, "max_completion_tokens": 5},
        {"modalities": ["text"], "tool_choice": "none"},
    ],
)
def test_fields_that_ask_for_nothing_are_taken(body: dict):
    assert not isinstance(read_one(line(**body)), BadLine)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"n": 2}, "body.n"),
        ({"n": True}, "body.n"),
        ({"best_of": 3}, "body.best_of"),
        ({"stream": True}, "body.stream"),
        ({"stream": 0}, "body.stream"),
        ({"logprobs": 21}, "body.logprobs"),
        ({"top_logprobs": 2}, "body.top_logprobs"),
        ({"logit_bias": {"1": -101}}, "body.logit_bias"),
        ({"tools": [{"type": "function"}]}, "body.tools[0]"),
        ({"response_format": {"type": "xml"}}, "body.response_format.type"),
        ({"reasoning_effort": "deep"}, "body.reasoning_effort"),
        ({"echo": True}, "body.echo"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "body.max_tokens"),
        ({"max_completion_tokens": 0}, "body.max_completion_tokens"),
        ({"temperature": "x"}, "body.temperature"),
        ({"messages": []}, "body.messages"),
        ({"messages": None}, "body.messages"),
        ({"prompt": "x"}, "body.prompt"),
        ({"model": 5}, "body.model"),
        ({"metadata": "x"}, "body.metadata"),
        ({"temprature": 1}, "body.temprature"),
    ],
)
def test_what_would_change_the_answer_is_refused(body: dict, field: str):
    item = read_one(line(**body))
    assert isinstance(item, BadLine)
    assert item.field == field
    assert item.remedy


@pytest.mark.parametrize(
    ("outer", "field"),
    [
        ({"method": "GET"}, "method"),
        ({"method": None}, "method"),
        ({"url": 5}, "url"),
        ({"url": ["/v1/completions"]}, "url"),
        ({"url": "/v1/responses"}, "body.messages"),
        ({"url": "/v1/embeddings"}, "url"),
        ({"body": None}, "body"),
        ({"body": "x"}, "body"),
        ({"temperature": 1}, "temperature"),
        ({"messages": []}, "messages"),
        ({"other": 1}, "other"),
    ],
)
def test_a_malformed_envelope_is_refused(outer: dict, field: str):
    item = read_one(line(outer=outer))
    assert isinstance(item, BadLine)
    assert item.field == field


def test_a_misplaced_sampling_field_is_sent_into_the_body():
    assert read_one(line(outer={"temperature": 1})).remedy == "move it into body"


def test_the_url_decides_between_prompt_and_messages():
    item = read_one(line(TEXT, messages=[{"role": "user", "content": "x"}]))
    assert (item.field, item.reason) == ("body.messages", f"does not belong to {TEXT}")
    values = line(TEXT)
    del values["body"]["prompt"]
    assert (read_one(values).field, read_one(values).reason) == ("body.prompt", "is missing")


@pytest.mark.parametrize(("endpoint", "other"), [(CHAT, TEXT), (TEXT, CHAT)])
def test_lines_of_another_endpoint_are_bad_where_one_is_asked_for(endpoint, other):
    whole_address = line(endpoint) | {"url": f"https://api.example/openai{endpoint}"}
    lines = [line(endpoint), whole_address, line(other), {"prompt": "a line of Helix's own"}]
    data = b"".join(json.dumps({**each, "custom_id": str(n)}).encode() + b"\n" for n, each in enumerate(lines, 1))
    found = list(LineReader(SamplingParams(), endpoint=endpoint).read(io.BytesIO(data)))
    bad = [item for item in found if isinstance(item, BadLine)]
    assert [(item.line, item.field) for item in bad] == [(3, "url"), (4, "url")]
    assert all(endpoint in item.reason for item in bad)
    assert not [item for item in LineReader(SamplingParams()).read(io.BytesIO(data)) if isinstance(item, BadLine)]
