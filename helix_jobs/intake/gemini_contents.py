"""Translate the contents of Gemini's generateContent into our messages: texts, thoughts, calls and their responses.

Source: the API reference of Gemini's generateContent, "Function calling".
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.line_faults import short

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.intake.line_faults import Faults

_ROLES: Final[Mapping[str, str]] = {"user": "user", "model": "assistant"}
# Both spellings of a field -> ours. A signature is the provider's own proof of a thought, and means nothing elsewhere.
_PART_FIELDS: Final[Mapping[str, str]] = {
    "text": "text",
    "thought": "thought",
    "functionCall": "call",
    "function_call": "call",
    "functionResponse": "response",
    "function_response": "response",
    "thoughtSignature": "signature",
    "thought_signature": "signature",
}
_CALL_FIELDS: Final = frozenset({"id", "name", "args"})
_RESPONSE_FIELDS: Final = frozenset({"id", "name", "response"})


class GeminiContents:
    """Our messages, and where each stands in the line.

    Gemini's calls need no ids, and a response names the function. Here each call gets an id, and a response answers the
    earliest call of the function that has none yet.

    Args:
        prefix: The path of the contents in the line.
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
        self._calls = 0
        # Calls without a response: id, name.
        self._open: list[tuple[str, str]] = []

    def add(self, content: object, index: int) -> None:
        """Translate one content."""
        path = f"{self._prefix}[{index}]"
        role = content.get("role", "user") if isinstance(content, dict) else None
        if not isinstance(role, str) or role not in _ROLES:
            self._faults.add(InvalidFieldError(f"{path}.role", "is neither user nor model", "give one of the two"))
            return
        parts = content.get("parts") if isinstance(content, dict) else None
        if not isinstance(parts, list) or not parts:
            remedy = 'give [{"text": "..."}]'
            self._faults.add(InvalidFieldError(f"{path}.parts", "is no list of parts", remedy))
            return
        message: dict[str, Any] = {"role": _ROLES[role], "content": []}
        thoughts: list[str] = []
        for number, part in enumerate(parts):
            self._faults.of(self._part, message, thoughts, part, f"{path}.parts[{number}]")
        if thoughts:
            message["reasoning_content"] = "\n".join(thoughts)
        texts = message["content"]
        if texts or thoughts or "tool_calls" in message:
            message["content"] = "\n".join(texts)
            self._append(message, path)

    def _part(self, message: dict[str, Any], thoughts: list[str], part: object, place: str) -> None:
        fields = _fields(part)
        what = fields.keys() & {"text", "call", "response"}
        is_answer = message["role"] == "assistant"
        if fields.keys() <= {"text", "thought", "signature"} and isinstance(fields.get("text"), str):
            if not fields.get("thought"):
                message["content"].append(fields["text"])
            elif is_answer:
                thoughts.append(fields["text"])
            else:
                raise InvalidFieldError(f"{place}.thought", "stands in a user's content", "give it in a model's")
        elif what == {"call"} and "thought" not in fields and is_answer:
            self._call(message, fields["call"], f"{place}.functionCall")
        elif what == {"response"} and "thought" not in fields and not is_answer:
            self._response(fields["response"], f"{place}.functionResponse")
        elif what in ({"call"}, {"response"}):
            remedy = "give a functionCall in a model's content and a functionResponse in a user's"
            raise InvalidFieldError(place, "stands in the content of the other role", remedy)
        else:
            raise InvalidFieldError(place, "is no text part", 'give {"text": "..."}')

    def _call(self, message: dict[str, Any], call: object, place: str) -> None:
        named = _named(call, _CALL_FIELDS, place)
        self._calls += 1
        identifier = named.get("id") or f"call_{self._calls}"
        self._open.append((str(identifier), named["name"]))
        arguments = named.get("args")
        function = {"name": named["name"], "arguments": {} if arguments is None else arguments}
        calls = message.setdefault("tool_calls", [])
        here = f"messages[{self._first + len(self.messages)}].tool_calls"
        inner = f"{here}[{len(calls)}]"
        self.names |= {
            here: place,
            inner: place,
            f"{inner}.function": place,
            f"{inner}.function.arguments": f"{place}.args",
        }
        calls.append({"id": identifier, "type": "function", "function": function})

    def _response(self, response: object, place: str) -> None:
        named = _named(response, _RESPONSE_FIELDS, place)
        if not isinstance(named.get("response"), dict):
            raise InvalidFieldError(f"{place}.response", "is no object", 'give {"result": ...}')
        identifier = named.get("id")
        fits = (one for one in self._open if one[1] == named["name"] and identifier in (None, one[0]))
        found = next(fits, None)
        if found is None:
            remedy = "give it behind a functionCall of that name in a model's content"
            raise InvalidFieldError(place, "is the response of no call", remedy)
        self._open.remove(found)
        text = json.dumps(named["response"], ensure_ascii=False)
        self._append({"role": "tool", "tool_call_id": found[0], "content": text}, place)

    def _append(self, message: dict[str, Any], path: str) -> None:
        self.names[f"messages[{self._first + len(self.messages)}]"] = path
        self.messages.append(message)


def gemini_text(content: object, path: str) -> str:
    """The text of a content that holds nothing else, such as a system instruction.

    Raises:
        InvalidFieldError: A part is no text.
    """
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list) or not parts:
        raise InvalidFieldError(f"{path}.parts", "is no list of parts", 'give [{"text": "..."}]')
    for index, part in enumerate(parts):
        if not isinstance(part, dict) or part.keys() != {"text"} or not isinstance(part["text"], str):
            raise InvalidFieldError(f"{path}.parts[{index}]", "is no text part", 'give {"text": "..."}')
    return "\n".join(part["text"] for part in parts)


def _fields(part: object) -> dict[str, Any]:
    """A part's fields by our names; a field that is unknown keeps its own."""
    if not isinstance(part, dict):
        return {}
    return {_PART_FIELDS.get(name, f"other {name}"): value for name, value in part.items() if value is not None}


def _named(value: object, known: frozenset[str], place: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise InvalidFieldError(f"{place}.name", "is missing", "give the function's name")
    for name, inner in value.items():
        if name not in known and inner is not None:
            raise InvalidFieldError(f"{place}.{short(name)}", "is not a field that is taken here", "remove it")
    return value
