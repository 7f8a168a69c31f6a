"""What the chat template makes of messages is transformers' own, and no message's text gets lost on the way."""

from __future__ import annotations

import jinja2
import pytest

from helix_jobs.engine.text import chat_template
from helix_jobs.engine.text.chat_template import ChatTemplate
from helix_jobs.engine.text.refused_messages import RefusedMessagesError
from helix_jobs.engine.text.template_probe import ContentForm
from tests.unit.engine.text.sample_templates import (
    CHATML,
    COLLAPSING,
    EITHER,
    ESCAPING,
    FOLDING,
    GENERATION,
    MIXED,
    OBJECTS,
    PARTS,
    STRICT_PARTS,
    THINKING,
    TRIMMING,
)
from tests.unit.engine.tiny_models import tokenizer

FOR_STRINGS = [CHATML, TRIMMING, FOLDING, THINKING, ESCAPING, COLLAPSING, EITHER, GENERATION, OBJECTS]
FOR_PARTS = [PARTS, STRICT_PARTS]

CHAT = [
    {"role": "system", "content": '  Be <brief> & "exact".\n'},
    {"role": "user", "content": "a\n\n\tWho are you?  "},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA model."},
    {"role": "user", "content": "1"},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "<eos>"}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, SPECIAL)


def transformers_says(source, messages, **arguments):
    return tokenizer().apply_chat_template(
        messages, chat_template=source, tokenize=False, add_generation_prompt=True, **{**SPECIAL, **arguments}
    )


@pytest.mark.parametrize("source", FOR_STRINGS)
@pytest.mark.parametrize("messages", [CHAT, CHAT[1:2], CHAT[1:], [{"role": "user", "content": "x" * 5000}]])
def test_the_prompt_is_what_transformers_renders(source, messages):
    assert template(source).render(messages, {}).text == transformers_says(source, messages)


@pytest.mark.parametrize("source", FOR_PARTS)
def test_a_template_that_asks_for_parts_is_given_parts(source):
    made = template(source)
    assert made.probe.forms[0] is ContentForm.PARTS
    as_parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in CHAT]
    assert made.render(CHAT, {}).text == transformers_says(source, as_parts)
    assert "Who are you?" in made.render(CHAT, {}).text


@pytest.mark.parametrize("source", FOR_STRINGS)
def test_a_template_that_takes_strings_is_given_strings(source):
    assert template(source).probe.forms[0] is ContentForm.STRING


def test_each_message_is_given_in_the_form_in_which_it_is_written():
    made = template(MIXED)
    assert made.probe.forms == (ContentForm.PARTS, ContentForm.STRING)
    assert made.render(CHAT, {}).text == "".join(f"{m['content']};" for m in CHAT)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("{% for m in messages if m.role != 'system' %}{{ m.content }};{% endfor %}", "messages[0] (system)"),
        ("{{ messages[-1].content }}", "messages[0] (system)"),
        ("{% for m in messages[:2] %}{{ m.content }}{% endfor %}", "messages[2] (assistant)"),
        ("{% for m in messages %}{{ m.text }}{% endfor %}", "messages[0] (system)"),
        ("{% for m in messages %}{{ m.content[:5] }}{% endfor %}", "messages[0] (system)"),
        ("nothing", "messages[0] (system)"),
    ],
)
def test_a_message_that_the_template_leaves_out_is_named(source, named):
    with pytest.raises(RefusedMessagesError) as error:
        template(source).render(CHAT, {})
    assert str(error.value).startswith(f"{named}: the model's chat template leaves its text out of the prompt")
    assert "Who are you" not in str(error.value)


def test_a_text_that_stands_in_the_wrapping_by_chance_is_not_taken_for_the_message():
    with pytest.raises(RefusedMessagesError, match=r"messages\[0\] \(user\)"):
        template("Answer 1 or 2: {% for m in messages %}<{{ m.role }}>{% endfor %}").render(
            [{"role": "user", "content": "1"}], {}
        )


def test_messages_without_text_need_not_be_in_the_prompt():
    source = "{% for m in messages if m.content %}{{ m.content }};{% endfor %}"
    rendering = template(source).render([{"role": "system", "content": ""}, {"role": "user", "content": "a"}], {})
    assert rendering.text == "a;"


def test_a_python_list_in_the_prompt_is_not_taken_for_its_text():
    """A template for strings that refuses a message must not be given parts instead: it would write them as Python."""
    source = "{% if 'x' in messages[0].content %}{{ raise_exception('no x') }}{% endif %}{{ messages[0].content }}"
    with pytest.raises(RefusedMessagesError, match="refuses the messages: no x"):
        template(source).render([{"role": "user", "content": "x"}], {})


def test_arguments_reach_the_template_and_unknown_ones_are_refused():
    question = [{"role": "user", "content": "hi"}]
    made = template(THINKING)
    assert made.render(question, {"enable_thinking": False}).text == "<|user|>hi<|end|><|assistant|><think></think>"
    assert made.render(question, {"enable_thinking": True}).text == "<|user|>hi<|end|><|assistant|>"
    assert made.render(question, {"enable_thinking": False}).text == transformers_says(
        THINKING, question, enable_thinking=False
    )
    with pytest.raises(RefusedMessagesError, match="no variable 'enable_thinkin'; remove it"):
        made.render(question, {"enable_thinkin": False})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('only\n one  system') }}", "refuses the messages: only one system"),
        ("{{ raise_exception('x' * 5000) }}", "refuses the messages: " + "x" * 300),
        ("{{ 1 / 0 }}", r"fails on the messages \(ZeroDivisionError\); submit a prompt instead"),
        ("{% for m in messages %}{{ m.content + 1 }}{% endfor %}", r"fails on the messages \(TypeError\)"),
        ("{{ messages.append(1) }}", "refuses the messages: access to attribute 'append'"),
        ("{{ ''.__class__.__mro__ }}", "refuses the messages: access to attribute '__class__'"),
        ("{{ namespace(__init__=1) }}", "refuses the messages: a namespace takes no name"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "writes more than 1,000,000 characters"),
    ],
)
def test_what_a_template_cannot_do_is_said_without_the_text(monkeypatch, source, said):
    monkeypatch.setattr(chat_template, "MAX_RENDERED_CHARS", 1_000_000)
    with pytest.raises(RefusedMessagesError, match=said) as error:
        template(source).render(CHAT, {})
    assert len(str(error.value)) < 400
    assert "Who are you" not in str(error.value)


def test_a_damaged_template_is_an_error_of_its_syntax():
    with pytest.raises(jinja2.TemplateSyntaxError):
        template("{% for %}")


@pytest.mark.parametrize(
    ("source", "after"),
    [
        (CHATML, "<|im_end|>\n"),
        (PARTS, "</s>"),
        (FOLDING, "<eos>"),
        ("{{ raise_exception('no assistant') }}", None),
        ("{{ messages[0].content }}", None),
    ],
)
def test_what_follows_an_answer_is_found(source, after):
    found = template(source).probe.after_answer
    assert found is None if after is None else found is not None and found.startswith(after)
