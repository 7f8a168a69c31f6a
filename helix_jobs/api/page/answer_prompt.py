"""What one job asked: its prompt or conversation, its tools, and its settings, ready to be shown. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.api.page.texts import ShownText, json_text, pretty_json, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

# A conversation may have thousands of turns: the first ones and the last ones are shown.
_FIRST_TURNS: Final = 20
_LAST_TURNS: Final = 80
_VALUE_CHARS: Final = 4_000
_TURN_CHARS: Final = 10_000
_SHOWN_TOOLS: Final = 128
_SHOWN_CALLS: Final = 64
_NAME_CHARS: Final = 200
# What stands elsewhere on the page.
_SHOWN_ELSEWHERE: Final = frozenset({"prompt", "prompt_token_ids", "messages", "tools", "sampling", "metadata"})


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the model; its arguments as JSON on lines, where they are JSON."""

    name: str
    arguments: ShownText


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation, or the prompt.

    Attributes:
        role: Who speaks; ``prompt`` for a text that is continued.
        text: What they say.
        thinking: What the model thought, where the message has it.
        calls: Calls of tools.
        about: To which call a tool answers.
    """

    role: str
    text: ShownText
    thinking: ShownText | None = None
    calls: tuple[ToolCall, ...] = ()
    about: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the model may call."""

    name: str
    description: str
    parameters: ShownText


@dataclass(frozen=True, slots=True)
class Asked:
    """A job's request.

    Attributes:
        turns: The prompt, or the conversation's messages.
        left_out: Messages between the first and the last that are not shown.
        tools: The tools that it offers.
        settings: Names and values of its settings.
        metadata: The same of its metadata.
    """

    turns: tuple[Turn, ...]
    left_out: int
    tools: tuple[Tool, ...]
    settings: tuple[tuple[str, ShownText], ...]
    metadata: tuple[tuple[str, ShownText], ...]

    @property
    def first_turns(self) -> tuple[Turn, ...]:
        """The turns in front of those that are left out."""
        return self.turns[:_FIRST_TURNS] if self.left_out else self.turns

    @property
    def last_turns(self) -> tuple[Turn, ...]:
        """The turns behind them."""
        return self.turns[_FIRST_TURNS:] if self.left_out else ()


def asked_of(request: Mapping[str, Any]) -> Asked:
    """What is shown of a stored request. Parts that a person changed by hand are shown as JSON."""
    turns, left_out = _turns(request)
    sampling, metadata = request.get("sampling"), request.get("metadata")
    settings = {**(sampling if isinstance(sampling, dict) else {})}
    settings |= {name: value for name, value in request.items() if name not in _SHOWN_ELSEWHERE and value is not None}
    return Asked(
        turns=tuple(turns),
        left_out=left_out,
        tools=tuple(_tools(request.get("tools"))),
        settings=tuple(sorted((name, _value(name, value)) for name, value in settings.items())),
        metadata=tuple((name, _value(name, value)) for name, value in metadata.items())
        if isinstance(metadata, dict)
        else (),
    )


def asked_text(request: Mapping[str, Any]) -> str:
    """The whole prompt as text; a conversation as JSON."""
    for name in ("prompt", "messages", "prompt_token_ids"):
        if name in request:
            return json_text(request[name])
    return json_text(request)


def calls_of(calls: Any) -> tuple[ToolCall, ...]:  # noqa: ANN401  (any JSON: a person may have changed the row)
    """The calls of tools that a message or an answer holds, in OpenAI's form."""
    found = []
    for call in (calls if isinstance(calls, list) else [])[:_SHOWN_CALLS]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            found.append(ToolCall("call", shown(json_text(call), _TURN_CHARS)))
            continue
        arguments = json_text(function.get("arguments") or "")
        name = json_text(function.get("name") or "call")[:_NAME_CHARS]
        found.append(ToolCall(name, shown(pretty_json(arguments) or arguments, _TURN_CHARS)))
    return tuple(found)


def _turns(request: Mapping[str, Any]) -> tuple[list[Turn], int]:
    messages = request.get("messages")
    if isinstance(messages, list):
        left_out = max(0, len(messages) - _FIRST_TURNS - _LAST_TURNS)
        kept = messages[:_FIRST_TURNS] + messages[len(messages) - _LAST_TURNS :] if left_out else messages
        return [_turn(message) for message in kept], left_out
    if "prompt_token_ids" in request:
        return [Turn("token ids", shown(json_text(request["prompt_token_ids"]).replace("\n", "")))], 0
    return [Turn("prompt", shown(json_text(request.get("prompt", ""))))], 0


def _turn(message: Any) -> Turn:  # noqa: ANN401  (any JSON)
    if not isinstance(message, dict):
        return Turn("message", shown(json_text(message), _TURN_CHARS))
    thinking = message.get("reasoning_content") or message.get("reasoning")
    content = message.get("content")
    return Turn(
        role=json_text(message.get("role", "message"))[:40],
        text=shown("" if content is None else json_text(content), _TURN_CHARS),
        thinking=shown(json_text(thinking), _TURN_CHARS) if thinking else None,
        calls=calls_of(message.get("tool_calls")),
        about=json_text(message.get("tool_call_id") or message.get("name") or "")[:80],
    )


def _tools(tools: Any) -> list[Tool]:  # noqa: ANN401  (any JSON)
    if not isinstance(tools, list):
        return []
    found = []
    for tool in tools[:_SHOWN_TOOLS]:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        if not isinstance(function, dict):
            function = {}
        found.append(
            Tool(
                name=json_text(function.get("name") or "tool")[:_NAME_CHARS],
                description=json_text(function.get("description") or "")[:2000],
                parameters=shown(json_text(function.get("parameters") or {}), _VALUE_CHARS),
            )
        )
    return found


def _value(name: str, value: object) -> ShownText:
    if name == "constraint" and isinstance(value, dict) and isinstance(value.get("value"), str):
        value = {**value, "value": pretty_json(value["value"]) or value["value"]}
        return shown("\n".join(str(part) for part in value.values() if part), _VALUE_CHARS)
    return shown(json_text(value), _VALUE_CHARS)
