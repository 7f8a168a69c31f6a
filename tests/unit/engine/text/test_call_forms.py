"""Calls are read from answers as templates write them; whatever is no whole call stays text."""

from __future__ import annotations

import functools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_jobs.engine.text.call_forms import FORMS, read_calls
from helix_jobs.engine.text.calls import Call
from helix_jobs.engine.text.chat_template import ChatTemplate
from tests.unit.engine.text.chat_templates import (
    BARE_JSON,
    CHANNEL_CALLS,
    GEMMA_CALL,
    MISTRAL_NEMO,
    NAMED_ARGUMENTS,
    QWEN2_5,
    QWEN3,
    XML,
)

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
PARAMETERS = {"look_up": {"type": "object", "properties": {"q": {"type": "string"}}}, "count": {}}

HARMONY_THOUGHT = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
GEMMA_CALLS = (
    'Hm<|tool_call>call:look_up{q:<|"|>a, "b": {c}\n<|"|>,n:[1,-2.5e3,{x:<|"|><|"|>}],t:true,z:None}<tool_call|>'
    '<|tool_call>call:count{<|"|>a b<|"|>:null}<tool_call|><|tool_response>'
)


@pytest.mark.parametrize(
    ("form", "text", "words", "calls"),
    [
        ("hermes", '<tool_call>\n{"name": "count", "arguments": {"n": 1}}\n</tool_call>', "", [("count", '{"n": 1}')]),
        ("hermes", 'Well.\n<tool_call>{"name":"count"}</tool_call>\nYes', "Well.\nYes", [("count", "{}")]),
        ("hermes", '<tool_call>{"arguments": "{}", "name": "count"}', "", [("count", "{}")]),
        ("hermes", '<tool_call>{"name": "count", "arguments": {"s": "</tool_call>"}}</tool_call>', "",
         [("count", '{"s": "</tool_call>"}')]),
        ("xml", "<tool_call>\n<function=look_up><parameter=q>\n12\n</parameter><parameter=n>12</parameter></function>",
         "", [("look_up", '{"q": "12", "n": 12}')]),
        ("xml", "<tool_call><function=count></function></tool_call>", "", [("count", "{}")]),
        ("xml", "Hm <tool_call><function=count><parameter=a>\nx\ny\n</parameter></function>", "Hm",
         [("count", '{"a": "x\\ny"}')]),
        ("llama", '{"name": "count", "parameters": {"n": 1}}', "", [("count", '{"n": 1}')]),
        ("llama", '<|python_tag|>{"name": "count", "parameters": {}}; {"name": "look_up", "arguments": {"q": "é"}}', "",
         [("count", "{}"), ("look_up", '{"q": "é"}')]),
        ("mistral_list", 'Ja[TOOL_CALLS][{"name": "count", "arguments": {}, "id": "a1"}]', "Ja", [("count", "{}")]),
        ("mistral", '[TOOL_CALLS]count[ARGS]{"n": 1}[TOOL_CALLS]look_up[CALL_ID]1[ARGS]{}', "",
         [("count", '{"n": 1}'), ("look_up", "{}")]),
        ("gemma", "<|tool_call>call:count{}<tool_call|>", "", [("count", "{}")]),
        ("gemma", GEMMA_CALLS, "Hm",
         [("look_up", '{"q": "a, \\"b\\": {c}\\n", "n": [1, -2500.0, {"x": ""}], "t": true, "z": null}'),
          ("count", '{"a b": null}')]),
        ("harmony", '<|channel|>commentary to=functions.count <|constrain|>json<|message|>{"n": 1}', "",
         [("count", '{"n": 1}')]),
        ("harmony", f"{HARMONY_THOUGHT} to=functions.count<|channel|>commentary json<|message|>{{}}<|call|>", "",
         [("count", "{}")]),
        ("mistral", 'count[TOOL_CALLS]count{"n": [1, {"a": null}]}', "count", [("count", '{"n": [1, {"a": null}]}')]),
    ],
)  # fmt: skip
def test_calls_are_read(form, text, words, calls):
    assert read_calls(text, form, PARAMETERS) == (words, [Call(*call) for call in calls])


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", "no call at all"),
        ("hermes", '<tool_call>{"name": "count", "arguments": {"n": 1}'),
        ("hermes", '<tool_call>{"name": "count"}</tool_call><tool_call>{"name": '),
        ("hermes", '<tool_call>{"name": "count"} and then'),
        ("hermes", '<tool_call>{"name": 5}</tool_call>'),
        ("hermes", '<tool_call>{"name": "count", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "count", "arguments": "[1"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "not_offered"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "count", "arguments": {"n": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "count", "arguments": {"n": 1e999}}</tool_call>'),
        ("hermes", "<tool_call>" + "[" * 5000),
        ("xml", "<tool_call><function=count><parameter=a>x</function></tool_call>"),
        ("xml", "<tool_call><function=count>"),
        ("xml", "<tool_call>count</tool_call>"),
        ("gemma", "<|tool_call>call:count{n:1"),
        ("gemma", "<|tool_call>call:count{n:1,n:2}<tool_call|>"),
        ("gemma", '<|tool_call>call:count{n:<|"|>open}<tool_call|>'),
        ("gemma", "<|tool_call>call:count{n:word}<tool_call|>"),
        ("gemma", "<|tool_call>call:count{n:NaN}<tool_call|>"),
        ("gemma", "<|tool_call>count{}<tool_call|>"),
        ("gemma", "<|tool_call>call:count{}<tool_call|> and <|tool_call>"),
        ("gemma", "<|tool_call>call:count{n:" + "[" * 5000),
        ("harmony", "<|channel|>final<|message|>count{}"),
        ("harmony", "<|channel|>commentary to=functions.count<|message|>[1]"),
        ("harmony", "<|channel|>commentary to=functions.count<|message|>{} and"),
        ("harmony", "<|channel|>commentary to=functions.count"),
        ("harmony", '{"n": 1}'),
        ("llama", 'Sure: {"name": "count", "parameters": {}}'),
        ("llama", '{"name": "count", "parameters": {}} and then'),
        ("llama", '{"a": 1}'),
        ("mistral_list", "[TOOL_CALLS]"),
        ("mistral_list", '[TOOL_CALLS][{"name": "count"}] and then'),
        ("mistral", "[TOOL_CALLS]count[ARGS]"),
        ("mistral", '[TOOL_CALLS]count[ARGS]{"n": 1'),
    ],
)
def test_a_broken_call_leaves_the_answer_as_it_is(form, text):
    assert read_calls(text, form, PARAMETERS) == (text, [])


def test_half_a_surrogate_pair_in_arguments_stays_an_escape():
    text = '<tool_call>{"name": "count", "arguments": {"s": "\\ud800"}}</tool_call>'
    (call,) = read_calls(text, "hermes", PARAMETERS)[1]
    assert call.arguments == '{"s": "\\ud800"}'


PIECES = (
    *(
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<function=count>",
        "</function>",
        "{",
        "}",
    ),
    *('{"name": "count", "arguments": {}}', '{"name": "count", "parameters": {"a": 1}}', "[", "]", ";", "count", "\n"),
    *("<parameter=a>", "</parameter>", '"', "\\", "<|python_tag|>", "NaN", "1e999", "é", "\x00", "null", ", ", ": "),
    *("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|call|>", "analysis", " to=functions.count"),
    *(
        "<|tool_call_start|>",
        "[count(",
        "a='x'",
        ")]",
        "\\'",
        "count=",
        "None",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
    ),
    *("<TOOLCALL>", "<|tools_prefix|>[", "<|START_ACTION|>", "<|tool_call|>", "<tool_calls>", '<invoke name="count">'),
    *("<seed:tool_call>", "<|tool_call_begin|>functions.count:0<|tool_call_argument_begin|>", "<function=", "'", "("),
    *("<\uff5ctool\u2581call\u2581begin\uff5c>", "<\uff5ctool\u2581sep\uff5c>", "function", "```json\n"),
    *("<|tool_call>", "<tool_call|>", "call:count{", "n:", '<|"|>'),
)


@given(st.sampled_from(sorted(FORMS)), st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=14))
def test_any_text_is_read_without_an_error(form, pieces):
    text = "".join(pieces)
    words, calls = read_calls(text, form, PARAMETERS)
    if not calls:
        assert words == text
    for call in calls:
        assert call.name in PARAMETERS
        assert isinstance(json.loads(call.arguments), dict)
        call.arguments.encode()


@pytest.mark.thorough(fast=118)
@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("piece", PIECES)
def test_a_long_answer_of_one_piece_is_read_at_once(form, piece):
    """Quadratic reading would take minutes."""
    read_calls(piece * 200_000, form, PARAMETERS)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", min_size=1, max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize(
    ("source", "form", "count"),
    [
        (QWEN3, "hermes", 2), (QWEN2_5, "hermes", 2), (MISTRAL_NEMO, "mistral_list", 2),
        (NAMED_ARGUMENTS, "mistral", 2), (BARE_JSON, "llama", 1), (GEMMA_CALL, "gemma", 2),
        (CHANNEL_CALLS, "harmony", 1),
    ],
)  # fmt: skip
@given(
    arguments=st.lists(
        st.dictionaries(st.text("abc", min_size=1, max_size=3), values, max_size=3), min_size=2, max_size=2
    )
)
def test_what_a_template_writes_is_read_back(source, form, count, arguments):
    _read_back(source, form, arguments[:count])


@functools.cache
def compiled(source):
    return ChatTemplate(source, SPECIAL)


def _read_back(source, form, arguments):
    template = compiled(source)
    calls = [
        {"id": f"abcdefgh{i}", "type": "function", "function": {"name": "count", "arguments": json.dumps(one)}}
        for i, one in enumerate(arguments)
    ]
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    text = template.render(messages, {}).text
    before = template.render(messages[:1], {}).text
    assert template.probe.after_answer is not None
    end = template.probe.after_answer.strip()
    answer = text[len(before) :] if text.startswith(before) else text[text.index("[TOOL_CALLS]") :]
    answer = answer.partition(end)[0] if end in answer else answer
    answer = answer.replace("<think>\n\n</think>\n\n", "").partition("<|im_start|>assistant")[0]
    found = read_calls(answer, form, PARAMETERS)[1]
    assert [json.loads(call.arguments) for call in found] == arguments


def test_what_an_xml_template_writes_is_read_back():
    dice = random.Random(3)
    for _ in range(50):
        arguments = {name: dice.choice(("x", "a\nb", "12", [1, "a"], {"k": None}, True, 7)) for name in ("a", "b")}
        schema = {"count": {"properties": {k: {"type": "string"} for k, v in arguments.items() if isinstance(v, str)}}}
        call = {"id": "c", "type": "function", "function": {"name": "count", "arguments": json.dumps(arguments)}}
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Hm", "tool_calls": [call]}]
        text = compiled(XML).render(messages, {}).text.partition("assistant\n")[2].partition("<|im_end|>")[0]
        words, calls = read_calls(text, "xml", schema)
        assert words == "Hm"
        assert [json.loads(found.arguments) for found in calls] == [arguments]
