"""Translate the messages of Anthropic's Messages API into ours, with blocks of tools and of thinking.

Source: the API reference of Anthropic's Messages, "Tool use" and "Extended thinking".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.line_faults import short

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.intake.line_faults import Faults

_CALL: Final = frozenset({"type", "id", "name", "input", "cache_control"})
_RESULT: Final = frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"})


class AnthropicMessages:
    """Our messages, and where each part of them stands in the line.

    One message there may be several here: each result of a tool is a message of its own.

    Args:
        prefix: The path of the messages in the line.
        first: The index of the first message here.
        faults: Receives what has no meaning here.

    Attributes:
        messages: The messages in our form.
        names: Our path -> the path in the line.
    """

    def __init__(self, prefix: str, first: int, faults: Faults) -> None:
        self.messages: list[Any] = []
        self.names: dict[str, str] = {}
        self._prefix = prefix
        self._first = first
        self._faults = faults

    def add(self, message: object, index: int) -> None:
        """Translate one message; whatever is no message of blocks is left as it is."""
        path = f"{self._prefix}[{index}]"
        blocks = message.get("content") if isinstance(message, dict) else None
        if not isinstance(message, dict) or not isinstance(blocks, list):
            self._begin(message, path)
            return
        role = message.get("role")
        open_message: dict[str, Any] | None = None
        for number, block in enumerate(blocks):
            place = f"{path}.content[{number}]"
            kind = block.get("type") if isinstance(block, dict) else None
            if role == "user" and kind == "tool_result":
                self._result(block, place)
                open_message = None
                continue
            if open_message is None:
                open_message = {**message, "content": []}
                self._begin(open_message, path)
            if role == "assistant" and kind == "tool_use":
                self._call(open_message, block, place)
            elif role == "assistant" and kind == "thinking" and isinstance(block.get("thinking"), str):
                thought = open_message.get("reasoning_content")
                open_message["reasoning_content"] = f"{thought}\n{block['thinking']}" if thought else block["thinking"]
            else:
                self.names[f"{self._here()}.content[{len(open_message['content'])}]"] = place
                open_message["content"].append(block)
        if not blocks:
            self._begin(message, path)

    def _here(self) -> str:
        return f"messages[{self._first + len(self.messages) - 1}]"

    def _begin(self, message: object, path: str) -> None:
        self.messages.append(message)
        self.names[self._here()] = path

    def _call(self, message: dict[str, Any], block: Mapping[str, Any], place: str) -> None:
        self._refuse_others(block, _CALL, place)
        calls = message.setdefault("tool_calls", [])
        here = f"{self._here()}.tool_calls"
        inner = f"{here}[{len(calls)}]"
        self.names |= {
            here: place,
            inner: place,
            f"{inner}.function": place,
            f"{inner}.function.arguments": f"{place}.input",
        }
        function = {"name": block.get("name"), "arguments": block.get("input", {})}
        calls.append({"id": block.get("id"), "type": "function", "function": function})

    def _result(self, block: Mapping[str, Any], place: str) -> None:
        self._refuse_others(block, _RESULT, place)
        if block.get("is_error"):
            remedy = "say it in the result's content, and leave is_error out"
            self._faults.add(InvalidFieldError(f"{place}.is_error", "is a mark that no chat template shows", remedy))
        content = block.get("content")
        message = {
            "role": "tool",
            "tool_call_id": block.get("tool_use_id"),
            "content": "" if content is None else content,
        }
        self._begin(message, place)
        self.names[f"{self._here()}.tool_call_id"] = f"{place}.tool_use_id"

    def _refuse_others(self, block: Mapping[str, Any], known: frozenset[str], place: str) -> None:
        for name, value in block.items():
            if name not in known and value is not None:
                reason = "is not a field that is taken here"
                self._faults.add(InvalidFieldError(f"{place}.{short(name)}", reason, "remove it"))
