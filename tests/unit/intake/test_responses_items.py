"""Items of OpenAI's Responses become messages: a turn's reasoning, text and calls are one, an output is a tool's."""

from __future__ import annotations

import pytest

from helix_jobs.errors import BadLine
from helix_jobs.new_job import NewJob
from tests.unit.intake.request_lines import read_one

ASKED = {"role": "user", "content": "How long is the Elbe?"}
REASONED = {
    "id": "rs_1",
    "type": "reasoning",
    "summary": [{"type": "summary_text", "text": "A fact about a river."}],
    "encrypted_content": "gAAA",
}
CALLED = {
    "id": "fc_1",
    "type": "function_call",
    "status": "completed",
    "call_id": "call_1",
    "name": "look_up",
    "arguments": '{"river": "Elbe"}',
}
GIVEN = {"type": "function_call_output", "call_id": "call_1", "output": "1,094 km"}
SAID = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "I look it up.", "annotations": []}],
}


def line(*items, **body):
    return {"custom_id": "r", "url": "/v1/responses", "body": {"model": "m", "input": list(items), **body}}


def messages_of(*items, **body):
    item = read_one(line(*items, **body))
    assert isinstance(item, NewJob), item
    return item.request["messages"]


def call(identifier, name, arguments):
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_a_turn_of_the_assistant_is_one_message():
    asked, turn, output = messages_of(ASKED, REASONED, SAID, CALLED, {**CALLED, "call_id": "call_2"}, GIVEN)
    assert asked == ASKED
    assert turn == {
        "role": "assistant",
        "content": "I look it up.",
        "reasoning_content": "A fact about a river.",
        "tool_calls": [call(name, "look_up", '{"river": "Elbe"}') for name in ("call_1", "call_2")],
    }
    assert output == {"role": "tool", "tool_call_id": "call_1", "content": "1,094 km"}


def test_turns_follow_each_other():
    second = {**CALLED, "call_id": "call_2"}
    parts = [{"type": "input_text", "text": "1,094"}, {"type": "input_text", "text": "km"}]
    given = {**GIVEN, "call_id": "call_2", "output": parts}
    system, _, first, _, again, output, last = messages_of(
        ASKED, CALLED, GIVEN, REASONED, second, given, SAID, instructions="Be brief"
    )
    assert system == {"role": "system", "content": "Be brief"}
    assert (first["content"], first["tool_calls"][0]["id"]) == ("", "call_1")
    assert (again["reasoning_content"], again["tool_calls"][0]["id"]) == ("A fact about a river.", "call_2")
    assert output["content"] == "1,094\nkm"
    assert last == {"role": "assistant", "content": "I look it up."}


def test_texts_of_the_assistant_stay_messages_of_their_own():
    texts = messages_of(ASKED, REASONED, SAID, SAID, REASONED, REASONED, SAID, ASKED)
    assert [message.get("reasoning_content") for message in texts] == [
        None, "A fact about a river.", None, "A fact about a river.\nA fact about a river.", None
    ]  # fmt: skip
    assert [message["role"] for message in texts] == ["user", *["assistant"] * 3, "user"]


def test_reasoning_in_full_counts_before_its_summary_and_none_says_nothing():
    full = {**REASONED, "content": [{"type": "reasoning_text", "text": "The Elbe."}]}
    empty = {"id": "rs_2", "type": "reasoning", "summary": []}
    texts = messages_of(ASKED, full, SAID, ASKED, empty, SAID)
    assert [message.get("reasoning_content") for message in texts] == [None, "The Elbe.", None, None]


@pytest.mark.parametrize(
    ("items", "field", "reason"),
    [
        ([ASKED, CALLED, {**GIVEN, "call_id": "x"}], "[2].call_id", "is the id of no call"),
        ([ASKED, CALLED, {**GIVEN, "call_id": None}], "[2].call_id", "is missing"),
        ([ASKED, CALLED, {**GIVEN, "output": None}], "[2].output", "is null"),
        ([ASKED, CALLED, {**GIVEN, "output": [{"type": "input_image"}]}], "[2].output[0]", "is no text part"),
        ([ASKED, CALLED, {**GIVEN, "mystery": 1}], "[2].mystery", "is not a field that is taken here"),
        ([ASKED, REASONED, SAID, {**CALLED, "name": "a b"}, GIVEN], "[3].name", "is no name of a function"),
        ([ASKED, REASONED, SAID, {**CALLED, "arguments": "{"}, GIVEN], "[3].arguments", "is not JSON"),
        ([ASKED, REASONED, SAID, {**CALLED, "call_id": 7}, GIVEN], "[3].call_id", "is no short string"),
        ([ASKED, {**CALLED, "namespace": "n"}, GIVEN], "[1].namespace", "is not a field that is taken here"),
        ([ASKED, CALLED], "[1]", "stand in the last message"),
        ([ASKED, REASONED], "[1].content", "is empty, and nothing can be continued"),
        ([ASKED, {**REASONED, "summary": []}, SAID], "[1].encrypted_content", "is for the provider alone to read"),
        ([ASKED, {**REASONED, "summary": "x"}, SAID], "[1].summary", "is a string"),
        ([ASKED, {**REASONED, "content": [{"text": 1}]}, SAID], "[1].content[0]", "is no text part"),
        ([ASKED, REASONED, {**SAID, "content": [{"type": "refusal"}]}, ASKED], "[2].content[0]", "is no text part"),
        ([ASKED, {**SAID, "tool_calls": "x"}, CALLED, GIVEN], "[1].tool_calls", "is a string"),
        ([ASKED, {"type": "item_reference", "id": "x"}], "[1].type", "is no item that is taken here"),
        ([ASKED, {"type": ["message"]}], "[1].type", "is no item that is taken here"),
        ([ASKED, 7], "[1]", "is a number"),
    ],
)
def test_what_cannot_be_translated_is_told_by_its_path_in_the_line(items, field, reason):
    for body in ({}, {"instructions": "Be brief"}):
        item = read_one(line(*items, **body))
        assert isinstance(item, BadLine), item
        assert (item.field, item.reason) == (f"body.input{field}", reason)
