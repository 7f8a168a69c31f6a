"""Translate the contents of Gemini's generateContent into our messages: texts, thoughts, calls and their responses.

Source: the API reference of Gemini's generateContent, "Function calling".
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.gemini_spellings import spellings
from helix_jobs.intake.line_faults import refuse_others
from helix_jobs.intake.translated_messages import TranslatedMessages

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from helix_jobs.intake.line_faults import Faults

_ROLES: Final[Mapping[str, str]] = {"user": "user", "model": "assistant"}
# Both spellings of what a part may hold -> ours.
_CONTENTS_OF_PART: Final[Mapping[str, str]] = {
    "text": "text",
    "functionCall": "call",
    "function_call": "call",
    "functionResponse": "response",
    "function_response": "response",
}
# A signature is the provider's own proof of a thought, and means nothing elsewhere.
_PART_FIELDS: Final = frozenset({*_CONTENTS_OF_PART, "thought", *spellings("thoughtSignature")})
_CALL_FIELDS: Final = frozenset({"id", "name", "args"})
_RESPONSE_FIELDS: Final = frozenset({"id", "name", "response"})
# The id of a call that has none.
_NO_ID: Final = (None, "")


class GeminiContents(TranslatedMessages):
    """Our messages from Gemini's contents.

    Gemini's calls need no ids, and a response names the function. Here each call gets an id, and a response answers the
    earliest call of the function that has none yet.

    Args:
        first: The index of the first message here.
        faults: Receives what has no meaning here.
        given: The ids that the line gives; no call without one gets any of these.
    """

    def __init__(self, first: int, faults: Faults, given: Collection[str]) -> None:
        super().__init__(first, faults)
        self._made_up = (name for number in itertools.count(1) if (name := f"call_{number}") not in given)
        # Calls without a response: id, name.
        self._open: list[tuple[Any, str]] = []

    def add(self, content: object, path: str) -> None:
        """Translate one content."""
        role = content.get("role", "user") if isinstance(content, dict) else None
        if not isinstance(role, str) or role not in _ROLES:
            self._faults.add(InvalidFieldError(f"{path}.role", "is neither user nor model", "give one of the two"))
            return
        parts = content.get("parts") if isinstance(content, dict) else None
        if not isinstance(parts, list) or not parts:
            remedy = 'give [{"text": "..."}]'
            self._faults.add(InvalidFieldError(f"{path}.parts", "is no list of parts", remedy))
            return
        is_answer = role == "model"
        message: dict[str, Any] = {"role": _ROLES[role]}
        if is_answer:  # its calls are added to it
            self._append(message, path)
        texts: list[str] = []
        thoughts: list[str] = []
        for number, part in enumerate(parts):
            self._faults.of(self._add_part, part, f"{path}.parts[{number}]", texts, thoughts, role)
        message["content"] = "\n".join(texts)
        if thoughts:
            message["reasoning_content"] = "\n".join(thoughts)
        if texts and not is_answer:  # behind the responses, which are messages of their own
            self._append(message, path)

    def _add_part(self, part: object, place: str, texts: list[str], thoughts: list[str], role: str) -> None:
        is_answer = role == "model"
        given = {name: value for name, value in part.items() if value is not None} if isinstance(part, dict) else {}
        name, *others = [name for name in given if name in _CONTENTS_OF_PART] or [None]
        if name is None:
            raise InvalidFieldError(place, "is no text part", 'give {"text": "..."}')
        if others:
            remedy = "give each in a part of its own"
            raise InvalidFieldError(f"{place}.{others[0]}", f"stands beside {name}", remedy)
        refuse_others(given, _PART_FIELDS, place)
        what, value, is_thought = _CONTENTS_OF_PART[name], given[name], bool(given.get("thought"))
        if what == "text":
            if not isinstance(value, str):
                raise InvalidFieldError(place, "is no text part", 'give {"text": "..."}')
            if is_thought and not is_answer:
                raise InvalidFieldError(f"{place}.thought", "stands in a user's content", "give it in a model's")
            (thoughts if is_thought else texts).append(value)
            return
        if is_thought:
            raise InvalidFieldError(f"{place}.thought", f"stands beside {name}", "give it beside a text, or remove it")
        if (what == "call") != is_answer:
            remedy = "give a functionCall in a model's content and a functionResponse in a user's"
            raise InvalidFieldError(place, "stands in the content of the other role", remedy)
        if what == "call":
            self._call(value, f"{place}.{name}")
        else:
            self._response(value, f"{place}.{name}")

    def _call(self, call: object, place: str) -> None:
        named = _named(call, _CALL_FIELDS, place)
        identifier = next(self._made_up) if named.get("id") in _NO_ID else named["id"]
        self._open.append((identifier, named["name"]))
        arguments = named.get("args")
        function = {"name": named["name"], "arguments": {} if arguments is None else arguments}
        self._append_call(identifier, function, place, f"{place}.args")

    def _response(self, response: object, place: str) -> None:
        named = _named(response, _RESPONSE_FIELDS, place)
        if not isinstance(named.get("response"), dict):
            raise InvalidFieldError(f"{place}.response", "is no object", 'give {"result": ...}')
        identifier = named.get("id")
        fits = (one for one in self._open if one[1] == named["name"] and identifier in (*_NO_ID, one[0]))
        found = next(fits, None)
        if found is None:
            remedy = "give it behind a functionCall of that name in a model's content"
            raise InvalidFieldError(place, "is the response of no call", remedy)
        self._open.remove(found)
        text = json.dumps(named["response"], ensure_ascii=False)
        self._append({"role": "tool", "tool_call_id": found[0], "content": text}, place)
        self.names[f"{self._last}.tool_call_id"] = place if identifier in _NO_ID else f"{place}.id"


def given_ids(contents: Sequence[object]) -> set[str]:
    """The ids of calls and responses that a line gives itself."""
    lists = [content.get("parts") for content in contents if isinstance(content, dict)]
    parts = [part for parts in lists if isinstance(parts, list) for part in parts if isinstance(part, dict)]
    named = [value for part in parts for value in part.values() if isinstance(value, dict)]
    return {value["id"] for value in named if isinstance(value.get("id"), str)}


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


def _named(value: object, known: frozenset[str], place: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise InvalidFieldError(f"{place}.name", "is missing", "give the function's name")
    refuse_others(value, known, place)
    return value
