"""The forms in which models write calls of functions: how each is recognised, read, and enforced.

Sources: the chat templates of the models named below; the readings follow what vLLM's tool parsers accept.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.text.channels import messages_of, split_at_marks
from helix_jobs.engine.text.gemma_arguments import arguments_at

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from helix_jobs.engine.text.channels import Message

_BLANK: Final = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class Call:
    """A call that an answer holds.

    Attributes:
        name: The function's name.
        arguments: JSON text of an object.
    """

    name: str
    arguments: str


class NoCallsError(Exception):
    """A text holds no calls in the form, or broken ones."""


@dataclass(frozen=True, slots=True)
class CallForm:
    """A form of calls.

    Attributes:
        name: The form's name.
        seen: Regular expression of a call of the function ``NAME`` in a rendered chat.
        read: Splits a text into the words around the calls and the calls; raises ``NoCallsError``.
        before: Text before each call's name, in a call that is enforced; empty where none can be.
        between: Text between name and arguments.
        after: Text behind the arguments.
        separator: Text between two calls; None if an answer holds one only.
        opens: Token or text before the first call.
        closes: Text behind the last call.
        thought: Texts around a thought before the call, where the grammar says how the answer thinks; else empty.
        is_tagged: Arguments stand one by one in tags, not together as JSON; see ``tagged_arguments``.
    """

    name: str
    seen: str
    read: Callable[[str, Mapping[str, Any]], tuple[str, list[Call]]]
    before: str = ""
    between: str = ""
    after: str = ""
    separator: str | None = None
    opens: str = ""
    closes: str = ""
    thought: tuple[str, str] | None = None
    is_tagged: bool = False


def find_call_form(shown: str, name: str) -> str | None:
    """The name of the form in which a rendered chat shows a call of the function ``name``; None if in no known one."""
    for form in FORMS.values():
        if re.search(form.seen.replace("NAME", re.escape(name)), shown):
            return form.name
    return None


def read_calls(text: str, form: str, parameters: Mapping[str, Any]) -> tuple[str, list[Call]]:
    """Split an answer into its words and its calls.

    An answer with a broken call, or with one of a function that was not offered, is all words: nothing of it is lost.
    Time is linear in the text; nothing is raised.

    Args:
        text: The answer, special tokens included.
        form: The name of a form.
        parameters: Name -> JSON schema of the parameters, for the functions that were offered.

    Returns:
        The words before, between and behind the calls, and the calls; ``text`` and no calls if there are none.
    """
    try:
        words, calls = FORMS[form].read(text, parameters)
    except NoCallsError:
        return text, []
    return (words.strip(), calls) if _are_offered(calls, parameters) else (text, [])


def read_message_calls(messages: Sequence[Message], parameters: Mapping[str, Any]) -> list[Call]:
    """The calls of an answer in messages; none if one of them is broken, or of a function that was not offered.

    Args:
        messages: The answer's messages.
        parameters: As in ``read_calls``.
    """
    try:
        calls = _calls_of(messages)[1]
    except NoCallsError:
        return []
    return calls if _are_offered(calls, parameters) else []


def _are_offered(calls: Sequence[Call], parameters: Mapping[str, Any]) -> bool:
    return bool(calls) and all(call.name in parameters for call in calls)


def _read_hermes(text: str, parameters: Mapping[str, Any]) -> tuple[str, list[Call]]:
    del parameters
    words, calls, place = [], [], 0
    while (start := text.find("<tool_call>", place)) >= 0:
        words.append(text[place:start])
        value, end = _json_at(text, start + len("<tool_call>"))
        calls.append(_call_of(value, "arguments"))
        place = _behind(text, end, "</tool_call>")
    return _joined([*words, text[place:]]), calls


_FUNCTION: Final = re.compile(r"\s*<function=([^<>\s]+)>\s*")
_PARAMETER: Final = re.compile(r"<parameter=([^<>\s]+)>\n?")


def _read_xml(text: str, parameters: Mapping[str, Any]) -> tuple[str, list[Call]]:
    words, calls, place = [], [], 0
    while (start := text.find("<tool_call>", place)) >= 0:
        words.append(text[place:start])
        function = _FUNCTION.match(text, start + len("<tool_call>"))
        if function is None:
            raise NoCallsError
        place = function.end()
        arguments: dict[str, Any] = {}
        schema = parameters.get(function[1])
        while (parameter := _PARAMETER.match(text, place)) is not None:
            arguments[parameter[1]], end = _value_at(text, parameter.end(), schema, parameter[1])
            place = _skip(text, end + len("</parameter>"))
        place = _behind(text, _behind(text, place, "</function>", is_needed=True), "</tool_call>")
        calls.append(Call(function[1], _dumped(arguments)))
    return _joined([*words, text[place:]]), calls


def _read_llama(text: str, parameters: Mapping[str, Any]) -> tuple[str, list[Call]]:
    del parameters
    place, calls = _skip(text, 0), []
    if text.startswith("<|python_tag|>", place):
        place = _skip(text, place + len("<|python_tag|>"))
    while place < len(text):
        value, end = _json_at(text, place)
        calls.append(_call_of(value, "parameters", "arguments"))
        place = _skip(text, end)
        if place < len(text):
            if text[place] != ";":
                raise NoCallsError
            place = _skip(text, place + 1)
    return "", calls


_MISTRAL_NAME: Final = re.compile(r"\s*([^\s\[\]{}]+)(?:\[CALL_ID\][^\s\[\]{}]*)?(?:\[ARGS\])?")


def _read_mistral(text: str, parameters: Mapping[str, Any]) -> tuple[str, list[Call]]:
    del parameters
    words, *parts = text.split("[TOOL_CALLS]")
    calls = []
    for part in parts:
        name = _MISTRAL_NAME.match(part)
        if name is not None:
            value, end = _json_at(part, name.end())
            calls.append(_call_of({"name": name[1], "arguments": value}, "arguments"))
        else:
            value, end = _json_at(part, 0)
            if not isinstance(value, list):
                raise NoCallsError
            calls += [_call_of(one, "arguments") for one in value]
        if part[end:].strip():
            raise NoCallsError
    return words, calls


_GEMMA_NAME: Final = re.compile(r"call:([^\s{}<>:]+)")


def _read_gemma(text: str, parameters: Mapping[str, Any]) -> tuple[str, list[Call]]:
    del parameters
    words, calls, place = [], [], 0
    while (start := text.find("<|tool_call>", place)) >= 0:
        words.append(text[place:start])
        name = _GEMMA_NAME.match(text, start + len("<|tool_call>"))
        if name is None:
            raise NoCallsError
        try:
            arguments, end = arguments_at(text, name.end())
        except (ValueError, RecursionError) as error:
            raise NoCallsError from error
        calls.append(Call(name[1], _dumped(arguments)))
        place = _behind(text, end, "<tool_call|>")
    # A model that waits for the answers to its calls writes their mark.
    return _joined([*words, text[place:].removesuffix("<|tool_response>")]), calls


def _read_channels(text: str, parameters: Mapping[str, Any]) -> tuple[str, list[Call]]:
    del parameters
    return _calls_of(messages_of(split_at_marks(text)))


def _calls_of(messages: Sequence[Message]) -> tuple[str, list[Call]]:
    words, calls = [], []
    for message in messages:
        if message.function is None:
            words.append("" if message.is_thought else message.text)
            continue
        value, end = _json_at(message.text, 0)
        if message.text[end:].strip():
            raise NoCallsError
        calls.append(_call_of({"name": message.function, "arguments": value}, "arguments"))
    return _joined(words), calls


def _json_at(text: str, place: int) -> tuple[Any, int]:
    """The JSON value at a place, behind white space, and where it ends."""
    try:
        return _DECODER.raw_decode(text, _skip(text, place))
    except (ValueError, RecursionError) as error:
        raise NoCallsError from error


def _no_constant(name: str) -> None:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)


def _call_of(value: object, *names: str) -> Call:
    """A call, from an object with the function's name and, under one of ``names``, its arguments."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise NoCallsError
    arguments: Any = next((value[name] for name in names if name in value), {})
    if isinstance(arguments, str):
        arguments, end = _json_at(arguments, 0)
        del end
    if not isinstance(arguments, dict):
        raise NoCallsError
    return Call(value["name"], _dumped(arguments))


def _dumped(arguments: dict[str, Any]) -> str:
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no database stores
        return json.dumps(arguments, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise NoCallsError from error
    return text


def _value_at(text: str, place: int, schema: object, name: str) -> tuple[object, int]:
    """A parameter's value and where its end tag stands.

    It is a text where its schema wants one, else the JSON that it is, else a text. JSON may hold the end tag.
    """
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not is_text(properties.get(name) if isinstance(properties, dict) else None):
        try:
            found, end = _json_at(text, place)
        except NoCallsError:
            pass
        else:
            end = _skip(text, end)
            if text.startswith("</parameter>", end):
                return found, end
    end = text.find("</parameter>", place)
    if end < 0:
        raise NoCallsError
    return text[place:end].removesuffix("\n"), end


def is_text(schema: object) -> bool:
    """Whether a parameter of this schema stands between its tags as a plain text, without quotation marks."""
    return isinstance(schema, dict) and schema.get("type") == "string"


def _skip(text: str, place: int) -> int:
    blank = _BLANK.match(text, place)
    assert blank is not None, "the pattern matches nothing, too"
    return blank.end()


def _behind(text: str, place: int, tag: str, *, is_needed: bool = False) -> int:
    """The place behind a tag, which may be missing at the end of the text: a stop may have cut it."""
    place = _skip(text, place)
    if text.startswith(tag, place):
        return place + len(tag)
    if is_needed or place < len(text):
        raise NoCallsError
    return place


def _joined(words: list[str]) -> str:
    return "\n".join(filter(None, (word.strip() for word in words)))


FORMS: Final[Mapping[str, CallForm]] = {
    form.name: form
    for form in (
        # Qwen2.5, Qwen3, Hermes and many others.
        CallForm(
            "hermes",
            r'<tool_call>\s*\{"name": ?"NAME"',
            _read_hermes,
            before='<tool_call>\n{"name": "',
            between='", "arguments": ',
            after="}\n</tool_call>",
            separator="\n",
        ),
        # Qwen3-Coder.
        CallForm(
            "xml",
            r"<tool_call>\s*<function=NAME>",
            _read_xml,
            before="<tool_call>\n<function=",
            between=">\n",
            after="</function>\n</tool_call>",
            separator="\n",
            is_tagged=True,
        ),
        # Mistral, up to version 7 of its tokenizer.
        CallForm(
            "mistral_list",
            r'\[TOOL_CALLS\]\s*\[\s*\{"name": ?"NAME"',
            _read_mistral,
            before='{"name": "',
            between='", "arguments": ',
            after="}",
            separator=", ",
            opens="[TOOL_CALLS][",
            closes="]",
        ),
        # Mistral, later versions.
        CallForm(
            "mistral",
            r"\[TOOL_CALLS\]\s*NAME(?:\[CALL_ID\][^\s\[\]]*)?(?:\[ARGS\])?\s*\{",
            _read_mistral,
            before="[TOOL_CALLS]",
            between="[ARGS]",
            separator="",
        ),
        # gpt-oss (harmony). A call is a message of its own, and ends the turn.
        CallForm(
            "harmony",
            r"to=functions\.NAME<\|channel\|>commentary",
            _read_channels,
            before="<|channel|>commentary to=functions.",
            between=" <|constrain|>json<|message|>",
            thought=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
        ),
        # Gemma 4.
        CallForm("gemma", r"<\|tool_call>call:NAME\{", _read_gemma),
        # Llama 3.1 and later.
        CallForm(
            "llama",
            r'\{"name": ?"NAME", ?"parameters": ?\{',
            _read_llama,
            before='{"name": "',
            between='", "parameters": ',
            after="}",
        ),
    )
}
