"""Thinking, continuation and tools as templates render them: transformers' own text, or a reason why not."""

from __future__ import annotations

import pytest

from helix_jobs.engine.chat_options import ReasoningOptions
from helix_jobs.engine.text.chat_template import ChatTemplate
from helix_jobs.engine.text.refused_messages import RefusedMessagesError
from helix_jobs.engine.text.thinking_arguments import thinking_arguments
from tests.unit.engine.text.chat_templates import (
    BARE_JSON,
    BRACKETS,
    CHANNEL_CALLS,
    CHANNELS,
    GEMMA_CALL,
    MISTRAL_NEMO,
    NAMED_ARGUMENTS,
    NULL_CONTENT,
    OPENED,
    QWEN2_5,
    QWEN3,
    SWITCHED,
    THOUGHT_CHANNEL,
    XML,
)
from tests.unit.engine.text.sample_templates import CHATML, FOLDING, PARTS, TRIMMING
from tests.unit.engine.tiny_models import tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
QUESTION = [{"role": "user", "content": "Name a <think> river"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Find é",
            "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
        },
    }
]
CALL = {"id": "call_00000001", "type": "function", "function": {"name": "look_up", "arguments": '{"q": "a \\"b\\""}'}}
CALLED = [
    *QUESTION,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "Elbe", "tool_call_id": "call_00000001"},
]


def template(source):
    return ChatTemplate(source, SPECIAL)


def transformers_says(source, messages, **arguments):
    options = {"add_generation_prompt": True, **arguments}
    return tokenizer().apply_chat_template(messages, chat_template=source, tokenize=False, **SPECIAL, **options)


def thinking_of(source, messages=QUESTION, **arguments):
    made = template(source)
    return made.thinking(made.render(messages, arguments))


@pytest.mark.parametrize(
    ("source", "arguments", "thinking"),
    [
        (QWEN3, {}, "free"),
        (QWEN3, {"enable_thinking": True}, "free"),
        (QWEN3, {"enable_thinking": False}, "closed"),
        (OPENED, {}, "open"),
        (SWITCHED, {}, "closed"),
        (SWITCHED, {"thinking": True}, "open"),
        (BRACKETS, {}, "free"),
        (CHANNELS, {}, "free"),
        (CHANNEL_CALLS, {}, "free"),
        (THOUGHT_CHANNEL, {}, "closed"),
        (THOUGHT_CHANNEL, {"enable_thinking": True}, "free"),
        (CHATML, {}, "closed"),
    ],
)
def test_a_prompt_leaves_the_thinking_open_closed_or_to_the_model(source, arguments, thinking):
    """The user's own <think> decides nothing."""
    assert thinking_of(source, **arguments) == thinking


@pytest.mark.parametrize(
    ("source", "options", "arguments"),
    [
        (QWEN3, {"enabled": False}, {"enable_thinking": False}),
        (QWEN3, {"effort": "none"}, {"enable_thinking": False}),
        (QWEN3, {"effort": "low"}, {"enable_thinking": True}),
        (SWITCHED, {"enabled": True}, {"thinking": True}),
        (CHANNELS, {"effort": "high"}, {"reasoning_effort": "high"}),
        (OPENED, {"enabled": True}, {}),
        (CHATML, {"max_tokens": 3}, {}),
    ],
)
def test_what_is_asked_of_thinking_reaches_the_variable_that_the_template_reads(source, options, arguments):
    made = template(source)
    marks = made.markers is not None
    given = thinking_arguments(ReasoningOptions(**options), made.variables, marks_thinking=marks)
    assert given == arguments
    assert made.render(QUESTION, given).text == transformers_says(source, QUESTION, **arguments)


@pytest.mark.parametrize(
    ("source", "options", "field", "remedy"),
    [
        (OPENED, {"enabled": False}, "enable_thinking", "remove it, or bound the thinking with max_reasoning_tokens"),
        (OPENED, {"effort": "low"}, "reasoning_effort", "remove it, or bound the thinking with max_reasoning_tokens"),
        (CHATML, {"enabled": True}, "enable_thinking", "remove it"),
        (CHATML, {"effort": "none"}, "reasoning_effort", "remove it"),
        (CHANNELS, {"enabled": False}, "enable_thinking", "remove it, or bound the thinking with max_reasoning_tokens"),
    ],
)
def test_a_wish_that_can_have_no_effect_is_refused(source, options, field, remedy):
    made = template(source)
    marks = made.markers is not None
    with pytest.raises(RefusedMessagesError, match=f"^{field}: .*no effect; {remedy}$"):
        thinking_arguments(ReasoningOptions(**options), made.variables, marks_thinking=marks)


CONTINUED = {
    "qwen3": QWEN3, "qwen2.5": QWEN2_5, "opened": OPENED, "channels": CHANNELS, "thought channel": THOUGHT_CHANNEL,
    "nemo": MISTRAL_NEMO, "chatml": CHATML, "trimming": TRIMMING, "folding": FOLDING, "bare json": BARE_JSON,
    "channel calls": CHANNEL_CALLS,
}  # fmt: skip


@pytest.mark.thorough(fast=43)
@pytest.mark.parametrize("source", CONTINUED.values(), ids=CONTINUED)
@pytest.mark.parametrize("beginning", ["Sure, the", " The ", "é😀\n\n", "1. {{ x }}\n2.", "<think>\nhm", "a</think>b "])
def test_the_prompt_of_a_continued_message_ends_with_its_text(source, beginning):
    messages = [*QUESTION, {"role": "assistant", "content": beginning}]
    try:
        expected = transformers_says(source, messages, continue_final_message=True, add_generation_prompt=False)
    except ValueError:  # the template shows another text: what stands before </think>, say, is dropped
        expected = None
    made = template(source)
    if expected is None:
        assert "a</think>b" in beginning
        assert made.render(messages, {}, continues=True).text.endswith("b ")
        return
    rendering = made.render(messages, {}, continues=True)
    assert rendering.text == expected
    assert rendering.text.rstrip().endswith(beginning.rstrip().split("</think>")[-1].lstrip())


def test_parts_are_continued_as_well():
    messages = [*QUESTION, {"role": "assistant", "content": "Sure, the"}]
    assert template(PARTS).render(messages, {}, continues=True).text.endswith("<|assistant|>Sure, the")


@pytest.mark.parametrize(
    ("source", "beginning", "thinking"),
    [
        (QWEN3, "Sure", "closed"),
        (QWEN3, "<think>\nhm", "open"),
        (OPENED, "<think>\nhm", "open"),
        (THOUGHT_CHANNEL, "Sure", "free"),
        (CHANNELS, "Sure", "closed"),
        (CHANNEL_CALLS, "Sure", "closed"),
    ],
)
def test_a_continued_message_goes_on_where_it_stood(source, beginning, thinking):
    made = template(source)
    messages = [*QUESTION, {"role": "assistant", "content": beginning}]
    assert made.thinking(made.render(messages, {}, continues=True)) == thinking


def test_a_template_that_drops_the_last_message_continues_nothing():
    source = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(RefusedMessagesError, match=r"messages\[1\] \(assistant\)"):
        template(source).render([*QUESTION, {"role": "assistant", "content": "a"}], {}, continues=True)


def as_objects(messages, *, content=""):
    """As transformers wants them: arguments as an object."""
    given = []
    for message in messages:
        plain = dict(message)
        if "tool_calls" in message:
            function = {"name": "look_up", "arguments": {"q": 'a "b"'}}
            plain |= {"content": content, "tool_calls": [{**CALL, "function": function}]}
        given.append(plain)
    return given


FORMS = {
    "hermes": QWEN3, "hermes, older": QWEN2_5, "bare json": BARE_JSON, "xml": XML, "named arguments": NAMED_ARGUMENTS,
    "channel calls": CHANNEL_CALLS,
}  # fmt: skip


@pytest.mark.parametrize("source", FORMS.values(), ids=FORMS)
def test_tools_calls_and_their_results_are_rendered_as_by_transformers(source):
    made = template(source)
    assert made.render(QUESTION, {}, tools=TOOLS).text == transformers_says(source, QUESTION, tools=TOOLS)
    expected = transformers_says(source, as_objects(CALLED), tools=TOOLS)
    assert made.render(CALLED, {}, tools=TOOLS).text == expected
    assert made.render(CALLED, {}).text == transformers_says(source, as_objects(CALLED))


def test_ids_are_made_short_where_a_template_takes_no_other():
    made = template(MISTRAL_NEMO)
    assert made.probe.tools.short_ids
    text = made.render(CALLED, {}, tools=TOOLS).text
    call = text.partition('"id": "')[2].partition('"')[0]
    result = text.partition('"call_id": "')[2].partition('"')[0]
    assert call == result
    assert len(call) == 9
    assert call.isalnum()
    short = [{**m, **({"tool_call_id": call} if "tool_call_id" in m else {})} for m in as_objects(CALLED)]
    short[1]["tool_calls"][0]["id"] = call
    assert text == transformers_says(MISTRAL_NEMO, short, tools=TOOLS)


@pytest.mark.parametrize(
    ("source", "form"),
    [
        (QWEN3, "hermes"), (QWEN2_5, "hermes"), (XML, "xml"), (MISTRAL_NEMO, "mistral_list"),
        (NAMED_ARGUMENTS, "mistral"), (BARE_JSON, "llama"), (GEMMA_CALL, "gemma"),
        (CHANNEL_CALLS, "harmony"), (CHANNELS, None),
        (NULL_CONTENT, None), (CHATML, None), (OPENED, None),
    ],
)  # fmt: skip
def test_the_form_of_calls_is_the_one_that_the_template_writes(source, form):
    assert template(source).probe.tools.call_form == form


def test_a_template_gets_calls_as_it_wants_them():
    """Without content, and with arguments as text."""
    made = template(NULL_CONTENT)
    assert (made.probe.tools.null_content, made.probe.tools.arguments_as_text) == (True, True)
    assert '<|call|>look_up\n{"q": "a \\"b\\""}<|tool|>Elbe' in made.render(CALLED, {}).text


@pytest.mark.parametrize(
    ("source", "messages", "tools", "said"),
    [
        (CHATML, QUESTION, TOOLS, "tools: the model's chat template does not show them"),
        (NULL_CONTENT, QUESTION, TOOLS, "tools: the model's chat template writes calls in no form that Helix reads"),
        (CHATML, CALLED, [], r"messages\[1\] \(assistant\): the model's chat template leaves its tool_calls out"),
        (FOLDING, CALLED, [], "roles must alternate"),
        (BARE_JSON, [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL, {**CALL, "id": "b"}]}], [],
         "only single tool-calls"),
        ("{% for m in messages if m.role != 'tool' %}{{ m.content }}{{ m.tool_calls }}{% endfor %}", CALLED, [],
         r"messages\[2\] \(tool\): the model's chat template leaves its text out"),
    ],
)  # fmt: skip
def test_what_a_template_cannot_render_is_refused_with_the_reason(source, messages, tools, said):
    with pytest.raises(RefusedMessagesError, match=said):
        template(source).render(messages, {}, tools=tools)


def test_one_call_of_several_that_is_left_out_is_noticed():
    first = "{% if m.tool_calls %}{{ m.tool_calls[0] | tojson }}{% endif %}"
    source = f"{{% for m in messages %}}{{{{ m.content }}}}{first}{{% endfor %}}"
    messages = [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL, {**CALL, "id": "b"}]}]
    template(source).render([*QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL]}], {})
    with pytest.raises(RefusedMessagesError, match="leaves its tool_calls out"):
        template(source).render(messages, {})


def test_a_second_call_that_a_template_of_one_call_leaves_out_is_noticed():
    """As with gpt-oss."""
    messages = [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL, {**CALL, "id": "b"}]}]
    with pytest.raises(RefusedMessagesError, match="leaves its tool_calls out"):
        template(CHANNEL_CALLS).render(messages, {})


def test_a_function_gets_what_a_template_cannot_do_without():
    """gpt-oss' template adds the description to a text, and Command R's goes through the parameters."""
    needy = "{% for t in tools or [] %}{{ '// ' + t.function.description + t.function.name }}"
    needy += "{% for name in t.function.parameters.properties %}{{ name }}{% endfor %}{% endfor %}"
    needy += "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    needy += "{{ '<function=' + c.function.name + '>' + c.function.arguments | tojson + '</function>' }}{% endfor %}"
    needy += "{% endfor %}"
    bare = [{"type": "function", "function": {"name": "look_up"}}]
    made = template(needy)
    assert made.probe.tools.whole_functions
    assert made.render(QUESTION, {}, tools=bare).text.startswith("// look_up")
    assert made.render(QUESTION, {}, tools=TOOLS).text.startswith("// Find \u00e9look_upq")
    assert not template(QWEN3).probe.tools.whole_functions
    assert template(QWEN3).render(QUESTION, {}, tools=bare).text == transformers_says(QWEN3, QUESTION, tools=bare)


def test_earlier_thinking_reaches_the_template():
    messages = [
        *QUESTION,
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [CALL]},
        CALLED[2],
    ]
    given = as_objects(messages)
    assert template(QWEN3).render(messages, {}).text == transformers_says(QWEN3, given)
    assert "<think>\nhm\n</think>" in template(QWEN3).render(messages, {}).text
