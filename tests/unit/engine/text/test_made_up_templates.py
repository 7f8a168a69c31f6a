"""Chat templates that a grammar makes up mean to Helix what they mean to transformers."""

from __future__ import annotations

import itertools
import random
import warnings
from typing import TYPE_CHECKING

import jinja2
import pytest

from helix_jobs.engine.text.chat_template import ChatTemplate
from helix_jobs.engine.text.refused_messages import RefusedMessagesError
from tests.unit.engine.text.template_grammar import TemplateGrammar
from tests.unit.engine.tiny_models import tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from helix_jobs.engine.text.template_probe import ContentForm

MESSAGES = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": " hi\n"},
    {"role": "assistant", "content": "<think>x</think>yes"},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def rendered_by_transformers(source: str, forms: Iterable[ContentForm]) -> str | None:
    """None where it fails, however it does."""
    made = tokenizer()
    made.chat_template = source
    for name, token in SPECIAL.items():
        setattr(made, name, token)
    messages = [{**m, "content": form.of(m["content"])} for m, form in zip(MESSAGES, forms, strict=True)]
    try:
        return str(made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception:  # noqa: BLE001  (a template is a program: anything may come out of it)
        return None


def render(template: ChatTemplate) -> tuple[str, str]:
    """The prompt, or why there is none."""
    try:
        return template.render(MESSAGES, {}).text, ""
    except RefusedMessagesError as error:
        return "", str(error)


@pytest.mark.thorough
@pytest.mark.parametrize("first", range(0, 400, 100))
def test_they_render_as_in_transformers(first: int) -> None:
    rendered = 0
    for seed in range(first, first + 100):
        source = TemplateGrammar(random.Random(seed), tame=True).template()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of the Python that jinja2 makes of '1[0]'
            try:
                ours = ChatTemplate(source, SPECIAL)
            except jinja2.TemplateError as error:
                pytest.fail(f"seed {seed} makes no template: {error}")
            text, refusal = render(ours)
            if not refusal:
                rendered += 1
                choices = itertools.product(ours.probe.forms, repeat=len(MESSAGES))
                assert any(text == rendered_by_transformers(source, forms) for forms in choices), seed
            elif "leaves its text out" not in refusal:
                forms = [ours.probe.forms[0]] * len(MESSAGES)
                assert rendered_by_transformers(source, forms) is None, (seed, refusal)
    assert rendered >= 20, "most of them fail; the grammar has lost its use"
