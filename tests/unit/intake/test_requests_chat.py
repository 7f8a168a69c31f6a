"""What a line says of its chat: arguments for the template, and whose the last message is."""

from __future__ import annotations

import pytest

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.stored_requests import to_engine_request
from tests.unit.intake.request_lines import read_one

QUESTION = [{"role": "user", "content": "Name a river"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}


def bad(line):
    item = read_one(line)
    return item.field, item.reason


def openai(**body):
    return {"custom_id": "q", "url": "/v1/chat/completions", "body": {"messages": QUESTION, **body}}


@pytest.mark.parametrize("arguments", [{"enable_thinking": False}, {"a": [1, {"b": None}], "c": "x"}])
def test_arguments_for_the_template_are_stored_and_reach_the_engine(arguments):
    for line in ({"messages": QUESTION, "chat_template_kwargs": arguments}, openai(chat_template_kwargs=arguments)):
        stored = read_one(line).request
        assert stored["chat_template_kwargs"] == arguments
        request = to_engine_request(7, stored)
        assert request.chat_template_kwargs == arguments
        assert request.messages == tuple(QUESTION)


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_arguments_store_nothing(nothing):
    assert "chat_template_kwargs" not in read_one(openai(chat_template_kwargs=nothing)).request
    assert "chat_template_kwargs" not in read_one({"prompt": "a", "chat_template_kwargs": nothing}).request


@pytest.mark.parametrize(
    ("arguments", "field", "reason"),
    [
        ([], "", "is no object"),
        ("x", "", "is no object"),
        ({"messages": []}, ".messages", "is set by Helix"),
        ({"add_generation_prompt": False}, ".add_generation_prompt", "is set by Helix"),
        ({"chat_template": "{{ 1 }}"}, ".chat_template", "is set by Helix"),
        ({"": 1}, "", "holds a name that no template can read"),
        ({"a b": 1}, "", "holds a name that no template can read"),
        ({"x" * 64: 1}, "", "holds a name that no template can read"),
        ({"a": "x" * 5000}, "", "has 5,009 characters as JSON"),
        ({"a": [[[[[[[[1]]]]]]]]}, "", "is nested too deeply"),
    ],
)
def test_arguments_that_no_template_can_be_given_are_refused(arguments, field, reason):
    assert bad({"messages": QUESTION, "chat_template_kwargs": arguments}) == (f"chat_template_kwargs{field}", reason)
    assert bad(openai(chat_template_kwargs=arguments)) == (f"body.chat_template_kwargs{field}", reason)
    stored = {"seed": 1, "messages": QUESTION, "chat_template_kwargs": arguments}
    with pytest.raises(InvalidFieldError, match="chat_template_kwargs"):
        to_engine_request(7, stored)


def test_a_prompt_goes_through_no_template():
    item = read_one({"prompt": "a", "chat_template_kwargs": {"enable_thinking": False}})
    assert (item.field, item.reason) == ("chat_template_kwargs", "stands beside prompt")
    assert item.remedy == "remove it, or give messages: a prompt goes through no chat template"


@pytest.mark.parametrize("flags", [{}, {"continue_final_message": True}, {"add_generation_prompt": False}])
def test_a_last_message_of_the_assistant_is_continued(flags):
    messages = [*QUESTION, {"role": "assistant", "content": "Sure, the"}]
    for line in ({"messages": messages, **flags}, openai(messages=messages, **flags)):
        stored = read_one(line).request
        assert stored["continue_final_message"] is True
        assert to_engine_request(7, stored).continue_final_message
    assert "continue_final_message" not in read_one({"messages": QUESTION}).request


@pytest.mark.parametrize(
    ("last", "flags", "field", "reason"),
    [
        ({"content": "a"}, {"continue_final_message": False}, "continue_final_message", "is false, and the last"),
        ({"content": "a"}, {"add_generation_prompt": True}, "add_generation_prompt", "is true, and the last message"),
        ({"content": " "}, {}, "messages[1].content", "is empty, and nothing can be continued"),
        ({"content": "a", "tool_calls": [CALL]}, {}, "messages[1].tool_calls", "stand in the last message"),
        ({"role": "user", "content": "a"}, {"continue_final_message": True}, "continue_final_message", "is true, and"),
        ({"role": "user", "content": "a"}, {"add_generation_prompt": False}, "add_generation_prompt", "is false, and"),
        ({"content": "a"}, {"continue_final_message": 1}, "continue_final_message", "is a number"),
    ],
)
def test_what_cannot_be_continued_is_refused(last, flags, field, reason):
    messages = [*QUESTION, {"role": "assistant", **last}]
    found, said = bad({"messages": messages, **flags})
    assert (found, said[: len(reason)]) == (field, reason)
    assert bad(openai(messages=messages, **flags)) == (f"body.{found}", said)
    with pytest.raises(InvalidFieldError, match=r"last message|continued|number"):
        to_engine_request(7, {"seed": 1, "messages": messages, **flags})


@pytest.mark.parametrize("kind", [["text"], {"text": "text"}, None, 1, "image_url"])
def test_a_part_is_of_text_by_a_type_that_is_one_of_its_names(kind):
    messages = [{"role": "user", "content": [{"type": kind, "text": "hi"}]}]
    assert bad({"messages": messages}) == ("messages[0].content[0]", "is no text part")


def test_flags_of_continuing_are_taken_where_they_ask_for_nothing():
    assert read_one(openai(continue_final_message=False, add_generation_prompt=True)).request["messages"] == QUESTION
    assert "continue_final_message" not in read_one(openai(continue_final_message=None)).request
