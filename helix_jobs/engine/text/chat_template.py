"""ChatTemplate: messages to the prompt's text, with the checkpoint's own template.

A template is an untrusted program. It runs in jinja2's sandbox, and only in ``prompt_process``, which limits time and
memory; the sandbox does not.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import jinja2
from jinja2 import meta

from helix_jobs.engine.text.encoded_prompt import Thinking
from helix_jobs.engine.text.reasoning_forms import find_markers
from helix_jobs.engine.text.refused_messages import RefusedMessagesError
from helix_jobs.engine.text.template_messages import as_given, tool_as_given
from helix_jobs.engine.text.template_probe import ContentForm, probe
from helix_jobs.engine.text.template_sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Message = dict[str, Any]

# Four times the longest line of input: no sound template adds as much text as the messages hold.
MAX_RENDERED_CHARS: Final = 16_777_216
# Longest excerpt of a template's error message that is kept.
_MAX_EXCERPT_CHARS: Final = 300


@dataclass(frozen=True, slots=True)
class Rendering:
    """A prompt's text.

    Attributes:
        text: All of it.
        lead: What the template itself has written before the answer, behind the last message's text; before the text
            of a message that is continued, and that text.
    """

    text: str
    lead: str


class ChatTemplate:
    """A compiled template and its probe.

    Args:
        source: The template.
        special_tokens: Variables that transformers passes to templates beside the messages, such as ``bos_token``.
        added_tokens: Tokens that the tokenizer never splits.

    Attributes:
        probe: What the template does, as tried.
        markers: How it marks thinking; None if it marks none.
        variables: The variables it reads, those of Helix included.

    Raises:
        jinja2.TemplateError: The template's syntax is invalid.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, Any], added_tokens: Iterable[str] = ()) -> None:
        environment = sandbox()
        self._template = environment.from_string(source)
        self.variables = frozenset(meta.find_undeclared_variables(environment.parse(source)))
        tokens = frozenset(added_tokens)
        self.markers = find_markers(source, tokens)
        self._special_tokens = dict(special_tokens)
        self._mark = f"helix{secrets.token_hex(4)}n"
        self._marks = re.compile(rf"{self._mark}(\d+)x")
        self.probe = probe(self._render, self._mark, tokens)

    def render(
        self,
        messages: Sequence[Message],
        arguments: Mapping[str, Any],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        continues: bool = False,
    ) -> Rendering:
        """Render the prompt and check that it holds every message's text and calls.

        Each message's text is passed in a form that the template writes: a template that expects parts finds none in a
        string and silently leaves the text out. A second rendering detects this: there, each text ends in a mark of its
        own. A sound template may trim, escape, move or fold a text, and may drop the thinking of earlier answers, but
        it keeps the mark at the end.

        Args:
            messages: Role and content as a string; name, ``tool_calls``, ``tool_call_id`` and ``reasoning_content`` if
                given.
            arguments: The request's own arguments for the template.
            tools: The functions that the answer may call.
            continues: The prompt ends with the last message's text, as transformers' ``continue_final_message`` cuts
                it, instead of with the beginning of a new turn.

        Raises:
            RefusedMessagesError: The template refuses the messages, fails, does not use an argument, or leaves a text,
                a call or the tools out.
        """
        self._check_arguments(arguments)
        if tools and not self.probe.tools.shows_tools:
            raise RefusedMessagesError(
                "tools: the model's chat template does not show them to the model; submit the line without tools"
            )
        if tools and self.probe.tools.call_form is None:
            raise RefusedMessagesError(
                "tools: the model's chat template writes calls in no form that Helix reads; submit the line without "
                "tools, or set tool_choice to none"
            )
        given = [tool_as_given(tool, self.probe.tools) for tool in tools]
        trial = _Trial(messages, arguments, given or None, continues=continues)
        forms = [self.probe.forms[0]] * len(messages)
        refusal: RefusedMessagesError | None = None
        for other in (*self.probe.forms[1:], None):
            try:
                text = self._prompt(trial, forms)
                left_out, lead = self._inspect(trial, forms)
            except RefusedMessagesError as error:
                refusal = refusal or error
                left_out = list(range(len(messages)))
            else:
                if not left_out:
                    return Rendering(text, lead)
                refusal = refusal or _left_out_error(left_out[0], messages)
            for index in left_out:
                if index < len(messages):
                    forms[index] = other or forms[index]
        assert refusal is not None, "each round returns or leaves one"
        raise refusal

    def thinking(self, rendering: Rendering) -> Thinking:
        """What a prompt leaves of the thinking."""
        if self.markers is None:
            return Thinking.CLOSED
        opened, closed = (_end_of_last(rendering.lead, text) for text in (self.markers.opening, self.markers.end))
        if opened and opened >= closed:  # they are equal where the opening ends as the end does
            return Thinking.OPEN
        return Thinking.CLOSED if closed else Thinking.FREE

    def _check_arguments(self, arguments: Mapping[str, Any]) -> None:
        for name in arguments:
            if name not in self.variables:
                raise RefusedMessagesError(
                    f"the model's chat template has no variable {name!r}; remove it from chat_template_kwargs"
                )

    def _prompt(self, trial: _Trial, forms: Sequence[ContentForm]) -> str:
        """The prompt's text. A message that is continued ends in a mark, at which the text is cut."""
        if not trial.continues:
            return self._checked_render(trial, trial.messages, forms)
        *before, last = trial.messages
        # With a space behind it: a template that trims the text takes that space away.
        mark = f"{self._mark} "
        shown = self._checked_render(trial, [*before, {**last, "content": last["content"] + mark}], forms)
        text, found, _ = shown.rpartition(self._mark)
        if not found:
            raise _left_out_error(len(before), trial.messages)
        return text if shown.startswith(mark, len(text)) else text.rstrip()

    def _inspect(self, trial: _Trial, forms: Sequence[ContentForm]) -> tuple[list[int], str]:
        """What the template leaves out, and what leads to the answer (see ``Rendering``).

        An index below the count of messages stands for a message's text; behind it, for a message's calls.
        """
        messages, count = trial.messages, len(trial.messages)
        asked = [index for index, message in enumerate(messages) if message["content"].strip()]
        marked = [dict(message) for message in messages]
        for index in asked:
            marked[index]["content"] += f" {self._mark}{index}x"
        number, callers = count, {}
        for index, message in enumerate(messages):
            if message.get("tool_calls"):
                calls = message["tool_calls"]
                marked[index]["tool_calls"] = [
                    self._marked_call(call, one) for one, call in enumerate(calls, start=number)
                ]
                callers.update(dict.fromkeys(range(number, number + len(calls)), index))
                number += len(calls)
        shown = self._checked_render(trial, marked, forms)
        found = list(self._marks.finditer(shown))
        numbers = {int(mark[1]) for mark in found}
        left_out = [index for index in asked if index not in numbers]
        left_out += [count + index for one, index in callers.items() if one not in numbers]
        if trial.continues:
            before = [mark.end() for mark in found if int(mark[1]) != count - 1]
            last = [mark.start() for mark in found if int(mark[1]) == count - 1]
            return left_out, shown[max(before, default=0) : max(last, default=0)]
        return left_out, shown[max((mark.end() for mark in found), default=0) :]

    def _marked_call(self, call: Mapping[str, Any], number: int) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "name": f"{function['name']}{self._mark}{number}x"}}

    def _checked_render(self, trial: _Trial, messages: Sequence[Message], forms: Sequence[ContentForm]) -> str:
        try:
            given = [as_given(message, form, self.probe.tools) for message, form in zip(messages, forms, strict=True)]
            return self._render(
                given, tools=trial.tools, add_generation_prompt=not trial.continues, arguments=trial.arguments
            )
        except RefusedMessagesError:
            raise
        except jinja2.TemplateError as error:
            # The template's own message names roles and order, hardly ever the content.
            said = " ".join(str(error).split())[:_MAX_EXCERPT_CHARS]
            raise RefusedMessagesError(f"the model's chat template refuses the messages: {said}") from error
        except MemoryError as error:
            raise RefusedMessagesError("the model's chat template needs too much memory for the messages") from error
        except Exception as error:  # a template may raise any error, and its message may quote the content
            raise RefusedMessagesError(
                f"the model's chat template fails on the messages ({type(error).__name__}); submit a prompt instead"
            ) from error

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        pieces: list[str] = []
        size = 0
        for piece in self._template.generate(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **{**self._special_tokens, **(arguments or {})},
        ):
            size += len(piece)
            if size > MAX_RENDERED_CHARS:
                raise RefusedMessagesError(
                    f"the model's chat template writes more than {MAX_RENDERED_CHARS:,} characters for the messages; "
                    "submit a prompt instead"
                )
            pieces.append(piece)
        return "".join(pieces)


@dataclass(frozen=True, slots=True)
class _Trial:
    """A chat to be rendered, perhaps in several ways; see ``ChatTemplate.render``."""

    messages: Sequence[Message]
    arguments: Mapping[str, Any]
    tools: Sequence[Mapping[str, Any]] | None
    continues: bool = False


def _end_of_last(text: str, part: str) -> int:
    """The place behind the last occurrence; 0 for none."""
    found = text.rfind(part)
    return 0 if found < 0 else found + len(part)


def _left_out_error(number: int, messages: Sequence[Message]) -> RefusedMessagesError:
    if number >= len(messages):
        return RefusedMessagesError(
            f"messages[{number - len(messages)}] (assistant): the model's chat template leaves its tool_calls out of "
            "the prompt; write them into the message's content, or submit a prompt"
        )
    return RefusedMessagesError(
        f"messages[{number}] ({messages[number]['role']}): the model's chat template leaves its text out of the "
        "prompt; put it into a message that the template takes, such as the user's, or submit a prompt"
    )
