"""Translate the messages of Anthropic's Messages API into ours, with blocks of tools and of thinking.

Source: the API reference of Anthropic's Messages, "Tool use" and "Extended thinking".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.line_faults import refuse_others
from helix_jobs.intake.translated_messages import TranslatedMessages

if TYPE_CHECKING:
    from collections.abc import Mapping

# A name is ours, and means the same here.
_MESSAGE: Final = frozenset({"role", "content", "name"})
_CALL: Final = frozenset({"type", "id", "name", "input", "cache_control"})
_RESULT: Final = frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"})


class AnthropicMessages(TranslatedMessages):
    """Our messages from Anthropic's, whose blocks may be calls, results and thoughts."""

    def add(self, message: object, path: str) -> None:
        """Translate one message; whatever is no message of blocks is left as it is."""
        if not isinstance(message, dict):
            self._append(message, path)
            return
        self._faults.of(refuse_others, message, _MESSAGE, path)
        message = {name: value for name, value in message.items() if name in _MESSAGE}
        blocks = message.get("content")
        if not isinstance(blocks, list) or not blocks:
            self._append(message, path)
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
                self._append(open_message, path)
            if role == "assistant" and kind == "tool_use":
                self._faults.of(refuse_others, block, _CALL, place)
                function = {"name": block.get("name"), "arguments": block.get("input", {})}
                self._append_call(block.get("id"), function, place, f"{place}.input")
            elif role == "assistant" and kind == "thinking" and isinstance(block.get("thinking"), str):
                thought = open_message.get("reasoning_content")
                open_message["reasoning_content"] = f"{thought}\n{block['thinking']}" if thought else block["thinking"]
            else:
                self.names[f"{self._last}.content[{len(open_message['content'])}]"] = place
                open_message["content"].append(block)

    def _result(self, block: Mapping[str, Any], place: str) -> None:
        self._faults.of(refuse_others, block, _RESULT, place)
        if block.get("is_error"):
            remedy = "say it in the result's content, and leave is_error out"
            self._faults.add(InvalidFieldError(f"{place}.is_error", "is a mark that no chat template shows", remedy))
        content = block.get("content")
        message = {
            "role": "tool",
            "tool_call_id": block.get("tool_use_id"),
            "content": "" if content is None else content,
        }
        self._append(message, place)
        self.names[f"{self._last}.tool_call_id"] = f"{place}.tool_use_id"
