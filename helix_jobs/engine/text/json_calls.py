"""Readers of calls whose arguments stand together, as JSON or nearly so. Time is linear in the text.

The readings follow what vLLM's tool parsers accept.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.text.calls import Call, NoCallsError, behind, call_of, dumped, joined, json_at, skip
from helix_jobs.engine.text.channels import messages_of, split_at_marks
from helix_jobs.engine.text.gemma_arguments import arguments_at
from helix_jobs.engine.text.python_calls import calls_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from helix_jobs.engine.text.channels import Message

Read = tuple[str, list[Call]]


def read_hermes(text: str, parameters: Mapping[str, Any]) -> Read:
    """``<tool_call>`` with an object of name and arguments."""
    del parameters
    words, calls, place = [], [], 0
    while (start := text.find("<tool_call>", place)) >= 0:
        words.append(text[place:start])
        value, end = json_at(text, start + len("<tool_call>"))
        calls.append(call_of(value, "arguments"))
        place = behind(text, end, "</tool_call>")
    return joined([*words, text[place:]]), calls


def read_named(text: str, parameters: Mapping[str, Any], *, begin: str, name: str, end: str, around: str = "") -> Read:
    """A name and then its arguments, between marks.

    Args:
        text: The answer.
        parameters: The functions that were offered.
        begin: Text with which each call begins.
        name: Regular expression of what stands between ``begin`` and the arguments; its group is the name.
        end: Text behind the arguments.
        around: Regular expression of what stands around all calls and belongs to no words.
    """
    del parameters
    words, calls, place = [], [], 0
    while (start := text.find(begin, place)) >= 0:
        words.append(text[place:start])
        found = re.compile(name).match(text, start + len(begin))
        if found is None:
            raise NoCallsError
        value, stop = json_at(text, found.end())
        calls.append(call_of({"name": found[1], "arguments": value}, "arguments"))
        place = behind(text, stop, end)
    words.append(text[place:])
    return joined([re.sub(around, "", word) for word in words] if around else words), calls


def read_list(
    text: str,
    parameters: Mapping[str, Any],
    *,
    opens: str,
    closes: str,
    name_key: str = "name",
    arguments_key: str = "arguments",
) -> Read:
    """A list of objects with name and arguments, between marks.

    Args:
        text: The answer.
        parameters: The functions that were offered.
        opens: Text before the list.
        closes: Text behind the list.
        name_key: Under which an object has the function's name; empty where the name itself is the key of the
            arguments.
        arguments_key: Under which it has the arguments.
    """
    del parameters
    words, calls, place = [], [], 0
    while (start := text.find(opens, place)) >= 0:
        words.append(text[place:start])
        values, end = json_at(text, start + len(opens))
        if not isinstance(values, list):
            raise NoCallsError
        for value in values:
            if name_key:
                calls.append(call_of(value, arguments_key, name_key=name_key))
            elif isinstance(value, dict) and len(value) == 1:
                ((name, arguments),) = value.items()
                calls.append(call_of({"name": name, "arguments": arguments}, "arguments"))
            else:
                raise NoCallsError
        place = behind(text, end, closes)
    return joined([*words, text[place:]]), calls


def read_llama(text: str, parameters: Mapping[str, Any]) -> Read:
    """Objects of name and parameters, and nothing else."""
    del parameters
    place, calls = skip(text, 0), []
    if text.startswith("<|python_tag|>", place):
        place = skip(text, place + len("<|python_tag|>"))
    while place < len(text):
        value, end = json_at(text, place)
        calls.append(call_of(value, "parameters", "arguments"))
        place = skip(text, end)
        if place < len(text):
            if text[place] != ";":
                raise NoCallsError
            place = skip(text, place + 1)
    return "", calls


_MISTRAL_NAME: Final = re.compile(r"\s*([^\s\[\]{}]+)(?:\[CALL_ID\][^\s\[\]{}]*)?(?:\[ARGS\])?")


def read_mistral(text: str, parameters: Mapping[str, Any]) -> Read:
    """``[TOOL_CALLS]`` with a list of objects, or with a name and its arguments."""
    del parameters
    words, *parts = text.split("[TOOL_CALLS]")
    calls = []
    for part in parts:
        name = _MISTRAL_NAME.match(part)
        if name is not None:
            value, end = json_at(part, name.end())
            calls.append(call_of({"name": name[1], "arguments": value}, "arguments"))
        else:
            value, end = json_at(part, 0)
            if not isinstance(value, list):
                raise NoCallsError
            calls += [call_of(one, "arguments") for one in value]
        if part[end:].strip():
            raise NoCallsError
    return words, calls


_GEMMA_NAME: Final = re.compile(r"call:([^\s{}<>:]+)")


def read_gemma(text: str, parameters: Mapping[str, Any]) -> Read:
    """``<|tool_call>`` with a name and arguments in Gemma 4's own syntax."""
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
        calls.append(Call(name[1], dumped(arguments)))
        place = behind(text, end, "<tool_call|>")
    # A model that waits for the answers to its calls writes their mark.
    return joined([*words, text[place:].removesuffix("<|tool_response>")]), calls


def read_python(text: str, parameters: Mapping[str, Any]) -> Read:
    """A list of calls as Python writes them, between marks."""
    del parameters
    words, calls, place = [], [], 0
    while (start := text.find("<|tool_call_start|>", place)) >= 0:
        words.append(text[place:start])
        try:
            found, end = calls_at(text, start + len("<|tool_call_start|>"))
        except (ValueError, RecursionError) as error:
            raise NoCallsError from error
        calls += [Call(name, dumped(arguments)) for name, arguments in found]
        place = behind(text, end, "<|tool_call_end|>")
    return joined([*words, text[place:]]), calls


def read_channels(text: str, parameters: Mapping[str, Any]) -> Read:
    """Messages to functions, marks spelt out."""
    del parameters
    return calls_of(messages_of(split_at_marks(text)))


def calls_of(messages: Sequence[Message]) -> Read:
    """The words and the calls of an answer in messages.

    Raises:
        NoCallsError: A call is broken.
    """
    words, calls = [], []
    for message in messages:
        if message.function is None:
            words.append("" if message.is_thought else message.text)
            continue
        value, end = json_at(message.text, 0)
        if message.text[end:].strip():
            raise NoCallsError
        calls.append(call_of({"name": message.function, "arguments": value}, "arguments"))
    return joined(words), calls
