"""Translate lines of other providers' batches into our own forms: Anthropic, Gemini, OpenAI's Responses, ShareGPT.

Only fields with the same meaning here are accepted; any other field is refused by its own path, never ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InvalidFieldError, InvalidFieldsError
from helix_jobs.intake.anthropic_messages import AnthropicMessages
from helix_jobs.intake.anthropic_output import anthropic_output
from helix_jobs.intake.combinations import CONVERSATIONS_AND_QUESTION
from helix_jobs.intake.foreign_tools import (
    anthropic_thinking,
    anthropic_tools,
    responses_thinking,
    responses_tools,
    tool_path,
)
from helix_jobs.intake.gemini_config import gemini_config
from helix_jobs.intake.gemini_contents import GeminiContents, gemini_text, given_ids
from helix_jobs.intake.gemini_spellings import spelled, spellings
from helix_jobs.intake.gemini_tools import gemini_tools
from helix_jobs.intake.line_faults import Faults, asks_for_nothing, kind, refuse_others
from helix_jobs.intake.responses_items import ResponsesItems

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# A line with one of these fields has a foreign form.
MARKS: Final = frozenset({"params", "request", "conversations", "instruction"})
_RESPONSES_URL: Final = re.compile(r"(?:https?://[^/?#\s]+)?(?:/[\w.-]+)*/responses/?")
_MESSAGE: Final = re.compile(r"((?:body\.)?messages)(?:\[(\d+)\](.*))?", re.DOTALL)
_ALPACA: Final = (
    'jq -c \'{messages: [{role: "user", content: ([.instruction, .input // empty] | map(select(. != "")) | '
    'join("\\n\\n"))}]}\''
)
_LOGPROBS_INCLUDED: Final = ["message.output_text.logprobs"]
_SHAREGPT_ROLES: Final[Mapping[str, str]] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}
_ENVELOPE: Final = ("custom_id", "priority", "metadata", "accept")


@dataclass(slots=True)
class ForeignLine:
    """A line in one of our own forms, with the names of its fields in the original.

    Attributes:
        values: The line in our form.
        names: Our field -> the original field.
        system: The original field of the first message, if that is not a message there.
        parameters: The original name of a function's parameters.
    """

    values: dict[str, Any]
    names: dict[str, str] = field(default_factory=dict)
    system: str | None = None
    parameters: str = "parameters"

    def renamed(self, error: InvalidFieldError) -> InvalidFieldError:
        """The same fault under the field's name in the person's file."""
        if isinstance(error, InvalidFieldsError):
            return InvalidFieldsError(tuple(self.renamed(fault) for fault in error.faults))
        return InvalidFieldError(self._path(error.field), error.reason, error.remedy)

    def _path(self, name: str) -> str:
        message = _MESSAGE.fullmatch(name)
        # The longest of our names that this one is, or that its path begins with.
        ours = max((own for own in self.names if _begins(name, own)), key=len, default=name)
        if message is None or ours not in (message[1], name):
            if (
                (ours == "tools" or ours not in self.names)
                and "tools" in self.names
                and (tool := tool_path(name, self.names["tools"], self.parameters))
            ):
                return tool
            return self.names.get(ours, ours) + name[len(ours) :]
        if ours == name and message[2] is not None and name in self.names:
            return self.names[name]
        theirs = self.names.get(message[1], message[1])
        if message[2] is None:
            return theirs
        index = int(message[2]) - (self.system is not None)
        return f"{theirs}[{index}]{message[3]}" if index >= 0 else str(self.system)


def _begins(path: str, name: str) -> bool:
    return path == name or path.startswith((f"{name}.", f"{name}["))


def translate(values: Mapping[str, Any]) -> ForeignLine | None:
    """Return the line in our own form if it has a foreign one, else None.

    Raises:
        InvalidFieldError: The line has a foreign form and holds a field without a meaning here.
    """
    if isinstance(values.get("params"), dict):
        return _anthropic(values, values["params"])
    if isinstance(values.get("request"), dict):
        return _gemini(values, values["request"])
    if isinstance(values.get("conversations"), list):
        return _sharegpt(values)
    if isinstance(values.get("instruction"), str) and values.keys().isdisjoint({"prompt", "messages", "body"}):
        raise InvalidFieldError("instruction", "is Alpaca's form, which has no prompt", f"make lines with: {_ALPACA}")
    return None


def translate_responses(values: Mapping[str, Any]) -> ForeignLine | None:
    """Like ``translate``, for an OpenAI Batch line to ``/v1/responses``; its answer here is a chat completion."""
    url, body = values.get("url"), values.get("body")
    if not (isinstance(url, str) and isinstance(body, dict) and _RESPONSES_URL.fullmatch(url)):
        return None
    faults = Faults()
    neutral: dict[str, tuple[Any, ...]] = {
        "truncation": ("disabled",),
        "include": ([], _LOGPROBS_INCLUDED),
        "background": (False,),
        "previous_response_id": (),
    }
    ours = {
        name: value
        for name, value in body.items()
        if name not in ("input", "instructions", "max_output_tokens", "reasoning", "text", *neutral)
    }
    if body.get("include") == _LOGPROBS_INCLUDED:
        ours["logprobs"] = True
    for name in ("messages", "prompt"):
        if ours.get(name) is not None:
            faults.add(InvalidFieldError(f"body.{name}", "does not belong to /v1/responses", "give input"))
    _refuse_asking(body, neutral, "body.", faults)
    _move_text(body.get("text"), ours, faults)
    messages = body.get("input")
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    has_system = body.get("instructions") not in (None, "", [])
    translated = ResponsesItems(int(has_system), faults)
    if isinstance(messages, list):
        for index, item in enumerate(messages):
            translated.add(item, f"body.input[{index}]")
        messages = translated.messages
    system = _with_system(ours, messages, body.get("instructions"), "body.instructions")
    _move(body, ours, {"max_output_tokens": "max_tokens"})
    faults.of(responses_tools, body, ours)
    faults.of(responses_thinking, body, ours)
    faults.settle()
    names = {
        "body.messages": "body.input",
        "body.max_tokens": "body.max_output_tokens",
        "body.response_format": "body.text.format",
        "body.reasoning_effort": "body.reasoning.effort",
        "body.tool_choice.allowed_tools": "body.tool_choice",
        "tools": "body.tools",
        **translated.names,
    }
    return ForeignLine({**values, "url": "/v1/chat/completions", "body": ours}, names, system)


def _move_text(text: object, ours: dict[str, Any], faults: Faults) -> None:
    """Move the form of the answer from Responses' ``text``."""
    if text is None:
        return
    if not isinstance(text, dict):
        faults.add(InvalidFieldError("body.text", f"is {kind(text)}", 'give {"format": {"type": "text"}}'))
        return
    faults.of(refuse_others, text, {"format"}, "body.text")
    ours.pop("response_format", None)
    _move(text, ours, {"format": "response_format"})


def _anthropic(values: Mapping[str, Any], params: Mapping[str, Any]) -> ForeignLine:
    faults = Faults()
    ours: dict[str, Any] = _envelope(values, {"params"}, faults)
    same = ("model", "max_tokens", "temperature", "top_p", "top_k")
    neutral: dict[str, tuple[Any, ...]] = {
        "stream": (False,),
    }
    known = {*same, *neutral, "messages", "system", "stop_sequences", "metadata", "service_tier"}
    known |= {"thinking", "tools", "tool_choice", "output_config", "output_format"}
    faults.of(refuse_others, params, known, "params")
    _refuse_asking(params, neutral, "params.", faults)
    _move(params, ours, {**{name: name for name in same}, "stop_sequences": "stop"})
    faults.of(anthropic_tools, params, ours)
    faults.of(anthropic_thinking, params, ours)
    names: dict[str, str] = {}
    faults.of(anthropic_output, params, ours, names)
    messages, has_system = params.get("messages"), params.get("system") not in (None, "", [])
    translated = AnthropicMessages(int(has_system), faults)
    if isinstance(messages, list):
        for index, message in enumerate(messages):
            translated.add(message, f"params.messages[{index}]")
        messages = translated.messages
    system = _with_system(ours, messages, params.get("system"), "params.system")
    faults.settle()
    names |= {name: f"params.{name}" for name in (*same, "messages", "tools", "tool_choice")} | translated.names
    names |= {"stop": "params.stop_sequences", "max_reasoning_tokens": "params.thinking.budget_tokens"}
    return ForeignLine(ours, {**names, "prompt": "params.messages"}, system, parameters="input_schema")


def _gemini(values: Mapping[str, Any], request: Mapping[str, Any]) -> ForeignLine:
    faults = Faults()
    ours: dict[str, Any] = _envelope(values, {"request", "key"}, faults)
    if values.get("key") is not None:
        ours.setdefault("custom_id", values["key"])
    config_name = faults.of(spelled, request, "generationConfig", "request")
    system_name = faults.of(spelled, request, "systemInstruction", "request")
    neutral: dict[str, tuple[Any, ...]] = {"safetySettings": ([],), "safety_settings": ([],)}
    twofold = (name for field in ("generationConfig", "systemInstruction", "toolConfig") for name in spellings(field))
    known = {*twofold, "contents", "model", "tools", *neutral}
    faults.of(refuse_others, request, known, "request")
    _refuse_asking(request, neutral, "request.", faults)
    names = {"custom_id": "key", "messages": "request.contents", "prompt": "request.contents"}
    faults.of(gemini_tools, request, ours, names)
    _move(request, ours, {"model": "model"})
    config = {} if request.get(config_name) is None else request[config_name]
    if not isinstance(config, dict):
        faults.add(InvalidFieldError(f"request.{config_name}", f"is {kind(config)}", "give an object"))
        config = {}
    names |= gemini_config(config, f"request.{config_name}", ours, faults)
    contents, instruction = request.get("contents"), request.get(system_name)
    if not isinstance(contents, list):
        reason = f"is {kind(contents)}" if "contents" in request else "is missing"
        faults.add(InvalidFieldError("request.contents", reason, 'give [{"role": "user", "parts": [{"text": "..."}]}]'))
        contents = []
    text = None if instruction is None else faults.of(gemini_text, instruction, f"request.{system_name}")
    translated = GeminiContents(int(bool(text)), faults, given_ids(contents))
    for index, content in enumerate(contents):
        translated.add(content, f"request.contents[{index}]")
    names |= translated.names
    system = _with_system(ours, translated.messages, text, f"request.{system_name}")
    faults.settle()
    return ForeignLine(ours, names, system)


def _sharegpt(values: Mapping[str, Any]) -> ForeignLine:
    faults = Faults()
    ours = {name: value for name, value in values.items() if name not in ("conversations", "id")}
    if ours.get("messages") is not None or ours.get("prompt") is not None:
        raise CONVERSATIONS_AND_QUESTION.error("conversations")
    if values.get("id") is not None:
        ours.setdefault("custom_id", values["id"])
    messages: list[Any] = []
    for index, turn in enumerate(values["conversations"]):
        path = f"conversations[{index}]"
        if isinstance(turn, dict) and "from" not in turn:
            messages.append(turn)
            continue
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
            remedy = f"give one of {', '.join(_SHAREGPT_ROLES)}"
            faults.add(InvalidFieldError(f"{path}.from", "is none of the speakers that a chat has", remedy))
            continue
        faults.of(refuse_others, turn, {"from", "value"}, path)
        messages.append({"role": _SHAREGPT_ROLES[speaker], "content": turn.get("value")})
    if messages and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
        remedy = "take its answer away with: jq -c 'del(.conversations[-1])'"
        faults.add(InvalidFieldError("conversations", "ends with the assistant's turn", remedy))
    faults.settle()
    ours["messages"] = messages
    return ForeignLine(ours, {"messages": "conversations", "custom_id": "custom_id" if "custom_id" in values else "id"})


def _envelope(values: Mapping[str, Any], marks: Iterable[str], faults: Faults) -> dict[str, Any]:
    faults.of(refuse_others, values, {*_ENVELOPE, *marks})
    return {name: values[name] for name in _ENVELOPE if name in values}


def _with_system(ours: dict[str, Any], messages: object, system: object, name: str) -> str | None:
    """Set the messages, with a separate system text as the first; return ``name`` if there is such a text."""
    if system is None or system in ("", []) or not isinstance(messages, list):
        ours["messages"] = messages
        return None
    ours["messages"] = [{"role": "system", "content": system}, *messages]
    return name


def _move(theirs: Mapping[str, Any], ours: dict[str, Any], names: Mapping[str, str]) -> None:
    ours.update({new: theirs[old] for old, new in names.items() if old in theirs})


def _refuse_asking(
    values: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], prefix: str, faults: Faults
) -> None:
    for name, nothing in neutral.items():
        if not asks_for_nothing(values.get(name), nothing):
            faults.add(InvalidFieldError(f"{prefix}{name}", "asks for something Helix does not do", "remove it"))
