"""Translate the input items of OpenAI's Responses into our messages: texts, calls and their outputs, and reasoning.

Source: the type definitions of openai-python (``response_input_item_param``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.line_faults import kind, refuse_others
from helix_jobs.intake.translated_messages import TranslatedMessages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.intake.line_faults import Faults

_ITEMS: Final = ("message", "function_call", "function_call_output", "reasoning")
# Items that an answer of the provider held carry these; they say nothing to another model.
_RECORD: Final = frozenset({"type", "id", "status"})
_CALL: Final = _RECORD | {"call_id", "name", "arguments"}
_OUTPUT: Final = _RECORD | {"call_id", "output"}
_REASONING: Final = _RECORD | {"summary", "content", "encrypted_content"}
_TEXTS: Final = 'give [{"type": "summary_text", "text": "..."}]'


class ResponsesItems(TranslatedMessages):
    """Our messages from the items of Responses.

    There a turn of the assistant is several items: its reasoning, its text and each of its calls. Here these are one
    message. A text is a message of its own unless only reasoning stands before it.

    Args:
        first: The index of the first message here.
        faults: Receives what has no meaning here.
    """

    def __init__(self, first: int, faults: Faults) -> None:
        super().__init__(first, faults, "body.")
        # The assistant's message to which further items belong.
        self._turn: dict[str, Any] | None = None
        self._only_reasoned = False

    def add(self, item: object, path: str) -> None:
        """Translate one item; whatever is no object is left as it is."""
        form = item.get("type", "message") if isinstance(item, dict) else "message"
        if not isinstance(item, dict):
            self._append(item, path)
        elif form == "message":
            self._message(item, path)
        elif form == "function_call":
            self._call(item, path)
        elif form == "function_call_output":
            self._output(item, path)
        elif form == "reasoning":
            self._faults.of(self._reasoning, item, path)
        else:
            remedy = f"give one of {', '.join(_ITEMS)}"
            self._faults.add(InvalidFieldError(f"{path}.type", "is no item that is taken here", remedy))

    def _message(self, item: Mapping[str, Any], path: str) -> None:
        message = {name: value for name, value in item.items() if name not in _RECORD}
        is_answer = message.get("role") == "assistant"
        if is_answer and self._turn is not None and self._only_reasoned:
            self._turn |= message
            self.names |= {self._last: path, f"{self._last}.reasoning_content": self.names[self._last]}
        else:
            self._append(message, path)
            # Calls in the form of Chat Completions are all there are in this turn.
            self._turn = message if is_answer and "tool_calls" not in message else None
        self._only_reasoned = False

    def _call(self, item: Mapping[str, Any], path: str) -> None:
        self._faults.of(refuse_others, item, _CALL, path)
        if self._turn is None:
            self._open_turn(path)
        self._only_reasoned = False
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = self._append_call(item.get("call_id"), function, path, f"{path}.arguments")
        self.names[f"{call}.id"] = f"{path}.call_id"

    def _output(self, item: Mapping[str, Any], path: str) -> None:
        self._faults.of(refuse_others, item, _OUTPUT, path)
        message = {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
        self._append(message, path)
        self.names |= {f"{self._last}.tool_call_id": f"{path}.call_id", f"{self._last}.content": f"{path}.output"}
        self._turn = None

    def _reasoning(self, item: Mapping[str, Any], path: str) -> None:
        """The text of the reasoning, or its summary where there is no text."""
        refuse_others(item, _REASONING, path)
        texts = _texts(item, "content", path) or _texts(item, "summary", path)
        if not texts:
            if item.get("encrypted_content") is not None:
                reason = "is for the provider alone to read"
                raise InvalidFieldError(f"{path}.encrypted_content", reason, "leave the item out, or give its summary")
            return
        thought = "\n".join(texts)
        if self._turn is not None and self._only_reasoned:
            self._turn["reasoning_content"] += f"\n{thought}"
            return
        self._open_turn(path)["reasoning_content"] = thought
        self._only_reasoned = True

    def _open_turn(self, path: str) -> dict[str, Any]:
        self._turn = {"role": "assistant", "content": ""}
        self._append(self._turn, path)
        return self._turn


def _texts(item: Mapping[str, Any], name: str, path: str) -> list[str]:
    parts = item.get(name)
    if parts is None:
        return []
    if not isinstance(parts, list):
        raise InvalidFieldError(f"{path}.{name}", f"is {kind(parts)}", _TEXTS)
    for index, part in enumerate(parts):
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise InvalidFieldError(f"{path}.{name}[{index}]", "is no text part", _TEXTS)
    return [part["text"] for part in parts]
