"""Probe: what a chat template does with content, answers and tools, as tried when it is loaded.

Each question is a rendering of a short made-up chat, in which marked texts are looked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import TYPE_CHECKING, Any, Final, Protocol

from helix_jobs.engine.text.call_forms import find_call_form, form_of_tokens

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

# Longest end of a turn that is kept.
_MAX_EXCERPT_CHARS: Final = 300
# As OpenAI names calls, and as Mistral's templates demand it.
_LONG_ID: Final = "call_0123456789abcdef01234567"
_SHORT_ID: Final = "abcdef123"


class ContentForm(StrEnum):
    """How a message's text is passed to the template."""

    STRING = "string"
    PARTS = "parts"

    def of(self, text: str) -> str | list[dict[str, str]]:
        """The text in this form."""
        return text if self is ContentForm.STRING else [{"type": "text", "text": text}]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolProbe:
    """What a template does with tools.

    Attributes:
        shows_tools: It writes the functions into the prompt.
        call_form: The form in which it writes calls, see ``call_forms``; where it writes none, the one that the model
            has a token for. None for no known form.
        arguments_as_text: It takes a call's arguments as JSON text, not as an object.
        null_content: It writes calls only beside a content of none.
        short_ids: It takes only ids of nine letters and digits.
        whole_functions: It takes only functions that have a description and parameters.
    """

    shows_tools: bool = False
    call_form: str | None = None
    arguments_as_text: bool = False
    null_content: bool = False
    short_ids: bool = False
    whole_functions: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """The behaviour of a template, as tested when it was loaded.

    Attributes:
        forms: The forms of content worth trying, the better one first.
        after_answer: The text it writes right after an assistant's words; None when it cannot write such a turn.
        tools: What it does with tools.
    """

    forms: tuple[ContentForm, ...]
    after_answer: str | None
    tools: ToolProbe = ToolProbe()


class Render(Protocol):
    """Renders messages as the template's own language has them; anything may be raised."""

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text."""


def probe(render: Render, mark: str, added_tokens: Collection[str] = ()) -> Probe:
    """Try a template.

    Args:
        render: Renders with it.
        mark: A word of letters and digits that no template holds.
        added_tokens: Tokens that the tokenizer never splits.
    """
    forms = _working_forms(render, mark)
    return Probe(forms, _after_answer(render, mark, forms), _tools(render, mark, forms[0], added_tokens))


def _try(render: Render, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:  # noqa: ANN401  (render's own)
    """The text, or an empty one where the template fails, however it does."""
    try:
        return render(messages, **options)
    except Exception:  # noqa: BLE001  (a template may raise any error)
        return ""


def _working_forms(render: Render, mark: str) -> tuple[ContentForm, ...]:
    """The forms in which the template writes a test question, and ``STRING`` in any case."""
    working = []
    for form in ContentForm:
        shown = _try(render, [{"role": "user", "content": form.of(mark)}])
        # A template for strings writes parts as Python or JSON would, field names included.
        if mark in shown and not re.search(r"""["']text["']: """, shown):
            working.append(form)
    # A string is always safe: it is written or left out. Parts are only for a template known to read them.
    return tuple(dict.fromkeys((*working, ContentForm.STRING)))


def _after_answer(render: Render, mark: str, forms: Sequence[ContentForm]) -> str | None:
    for form in forms:
        turn = [{"role": "user", "content": form.of("x")}, {"role": "assistant", "content": form.of(mark)}]
        before, found, after = _try(render, turn, add_generation_prompt=False).rpartition(mark)
        if found and before:
            return after[:_MAX_EXCERPT_CHARS]
    return None


def _tools(render: Render, mark: str, form: ContentForm, added_tokens: Collection[str]) -> ToolProbe:
    question = {"role": "user", "content": form.of("x")}
    parameters = {"type": "object", "properties": {"a": {"type": "string", "description": "d"}}, "required": ["a"]}
    function = {"name": mark, "description": "d", "parameters": parameters}
    tools = [{"type": "function", "function": function}]
    shows_tools = mark in _try(render, [question], tools=tools)
    bare = [{"type": "function", "function": {"name": mark}}]
    whole_functions = shows_tools and mark not in _try(render, [question], tools=bare)
    for null_content, as_text, short in product((False, True), repeat=3):
        identifier = _SHORT_ID if short else _LONG_ID
        arguments: Any = f'{{"{mark}a": "{mark}v"}}' if as_text else {f"{mark}a": f"{mark}v"}
        call = {"id": identifier, "type": "function", "function": {"name": f"{mark}f", "arguments": arguments}}
        asked = {"role": "assistant", "content": None if null_content else "", "tool_calls": [call]}
        answered = {"role": "tool", "content": form.of("x"), "tool_call_id": identifier, "name": f"{mark}f"}
        shown = _try(render, [question, asked, answered], tools=tools if shows_tools else None)
        if f"{mark}f" in shown and f"{mark}v" in shown and f"'{mark}a'" not in shown:
            return ToolProbe(
                shows_tools=shows_tools,
                call_form=find_call_form(shown, f"{mark}f"),
                arguments_as_text=as_text,
                null_content=null_content,
                short_ids=short,
                whole_functions=whole_functions,
            )
    # It leaves calls out of the prompt, and the model writes them all the same.
    form_by_token = form_of_tokens(added_tokens) if shows_tools else None
    return ToolProbe(shows_tools=shows_tools, call_form=form_by_token, whole_functions=whole_functions)
