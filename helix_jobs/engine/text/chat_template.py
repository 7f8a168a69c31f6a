"""ChatTemplate: messages to the prompt's text, with the checkpoint's own template.

A template is an untrusted program. It runs in jinja2's sandbox, and only in ``prompt_process``, which limits time and
memory; the sandbox does not.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import jinja2
from jinja2 import meta
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.runtime import Macro

Message = dict[str, str]

# Four times the longest line of input: no sound template adds as much text as the messages hold.
MAX_RENDERED_CHARS: Final = 16_777_216
# Longest excerpt of a template's output that is kept: an error message, or the end of a turn.
_MAX_EXCERPT_CHARS: Final = 300


class RefusedMessagesError(Exception):
    """The template makes no prompt from these messages; the error's message says why."""


class ContentForm(StrEnum):
    """How a message's text is passed to the template."""

    STRING = "string"
    PARTS = "parts"

    def of(self, text: str) -> str | list[dict[str, str]]:
        """The text in this form."""
        return text if self is ContentForm.STRING else [{"type": "text", "text": text}]


@dataclass(frozen=True, slots=True)
class Probe:
    """The behaviour of a template, as tested when it was loaded.

    Attributes:
        forms: The forms of content worth trying, the better one first.
        after_answer: The text it writes right after an assistant's words; None when it cannot write such a turn.
    """

    forms: tuple[ContentForm, ...]
    after_answer: str | None


class ChatTemplate:
    """A compiled template and its probe.

    Args:
        source: The template.
        special_tokens: Variables that transformers passes to templates beside the messages, such as ``bos_token``.

    Raises:
        jinja2.TemplateError: The template's syntax is invalid.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, Any]) -> None:
        environment = _environment()
        self._template = environment.from_string(source)
        self._variables = meta.find_undeclared_variables(environment.parse(source))
        self._special_tokens = dict(special_tokens)
        self._mark = f"helix{secrets.token_hex(4)}n"
        self._marks = re.compile(rf"{self._mark}(\d+)x")
        forms = self._working_forms()
        self.probe = Probe(forms, self._after_answer(forms))

    def render(self, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
        """Render the prompt and check that it holds every message's text.

        Each message's text is passed in a form that the template writes: a template that expects parts finds none in a
        string and silently leaves the text out. A second rendering detects this: there, each text ends in a mark of its
        own. A sound template may trim, escape, move or fold a text, and may drop the thinking of earlier answers, but
        it keeps the mark at the end.

        Args:
            messages: Role and content as a string, name if given.
            arguments: The request's own arguments for the template.

        Raises:
            RefusedMessagesError: The template refuses the messages, fails, does not use an argument, or leaves a text
                out.
        """
        for name in arguments:
            if name not in self._variables:
                raise RefusedMessagesError(
                    f"the model's chat template has no variable {name!r}; remove it from chat_template_kwargs"
                )
        forms = [self.probe.forms[0]] * len(messages)
        refusal: RefusedMessagesError | None = None
        for other in (*self.probe.forms[1:], None):
            try:
                rendered = self._checked_render(messages, forms, arguments)
                left_out = self._left_out(messages, forms, arguments)
            except RefusedMessagesError as error:
                refusal = refusal or error
                left_out = list(range(len(messages)))
            else:
                if not left_out:
                    return rendered
                refusal = refusal or _left_out_error(left_out[0], messages[left_out[0]]["role"])
            for index in left_out:
                forms[index] = other or forms[index]
        assert refusal is not None, "each round returns or leaves one"
        raise refusal

    def _left_out(
        self, messages: Sequence[Message], forms: Sequence[ContentForm], arguments: Mapping[str, Any]
    ) -> list[int]:
        """Indices of the messages whose text the template leaves out."""
        asked = [index for index, message in enumerate(messages) if message["content"].strip()]
        marked = [dict(message) for message in messages]
        for index in asked:
            marked[index]["content"] += f" {self._mark}{index}x"
        found = {int(number) for number in self._marks.findall(self._checked_render(marked, forms, arguments))}
        return [index for index in asked if index not in found]

    def _checked_render(
        self, messages: Sequence[Message], forms: Sequence[ContentForm], arguments: Mapping[str, Any]
    ) -> str:
        try:
            return self._render(messages, forms, arguments)
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
        messages: Sequence[Message],
        forms: Sequence[ContentForm],
        arguments: Mapping[str, Any],
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        given = [
            {**message, "content": form.of(message["content"])} for message, form in zip(messages, forms, strict=True)
        ]
        pieces: list[str] = []
        size = 0
        for piece in self._template.generate(
            messages=given,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **{**self._special_tokens, **arguments},
        ):
            size += len(piece)
            if size > MAX_RENDERED_CHARS:
                raise RefusedMessagesError(
                    f"the model's chat template writes more than {MAX_RENDERED_CHARS:,} characters for the messages; "
                    "submit a prompt instead"
                )
            pieces.append(piece)
        return "".join(pieces)

    def _working_forms(self) -> tuple[ContentForm, ...]:
        """The forms in which the template writes a test question, and ``STRING`` in any case."""
        working = []
        question = [{"role": "user", "content": self._mark}]
        for form in ContentForm:
            try:
                shown = self._render(question, [form], {})
            except Exception:  # noqa: BLE001, S112  (as above: anything)
                continue
            # A template for strings writes parts as Python or JSON would, field names included.
            if self._mark in shown and not re.search(r"""["']text["']: """, shown):
                working.append(form)
        # A string is always safe: it is written or left out. Parts are only for a template known to read them.
        return tuple(dict.fromkeys((*working, ContentForm.STRING)))

    def _after_answer(self, forms: Sequence[ContentForm]) -> str | None:
        turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": self._mark}]
        for form in forms:
            try:
                shown = self._render(turn, [form, form], {}, add_generation_prompt=False)
            except Exception:  # noqa: BLE001, S112  (as above)
                continue
            before, found, after = shown.rpartition(self._mark)
            if found and before:
                return after[:_MAX_EXCERPT_CHARS]
        return None


def _left_out_error(index: int, role: str) -> RefusedMessagesError:
    return RefusedMessagesError(
        f"messages[{index}] ({role}): the model's chat template leaves its text out of the prompt; put it into a "
        "message that the template takes, such as the user's, or submit a prompt"
    )


class _Generation(Extension):
    """``{% generation %}``: marks an assistant's words for training; here it only writes its content."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's interface)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Macro) -> str:
        return caller()


class _PlainDict:
    """``dict`` without its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:  # noqa: ANN401  (dict's own)
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:  # noqa: ANN401
        return dict.fromkeys(*args)


class _PlainNamespace(Namespace):
    """``namespace`` without names that give access to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401  (jinja2's own: ``self`` may be an attribute)
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401  (any value of a template)
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace takes no name with a leading underscore: {name!r}")


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment that templates have in transformers' ``apply_chat_template``."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_PlainDict(), namespace=_PlainNamespace
    )
    return environment


def _to_json(
    value: Any,  # noqa: ANN401  (any value of a template)
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002  (templates may give it by position, as in transformers)
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002  (templates may name it)
    return datetime.now().strftime(format)  # noqa: DTZ005  (the day where the worker stands, as in transformers)
