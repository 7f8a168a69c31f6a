"""Check prompts and chat messages and convert them to their stored form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeGuard

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.line_faults import Faults, kind, short
from helix_jobs.intake.tool_fields import check_calls, check_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MAX_TOKEN_ID: Final = 2**31 - 1
_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
# A message of these needs no more than a text.
_TEXT_ROLES: Final = ("user", "system", "assistant", "developer")
_ROLE_AND_CONTENT: Final = frozenset({"role", "content"})
_MESSAGE_FIELDS: Final = frozenset({"role", "content", "name"})
# Further fields of a role's messages. The thinking of an earlier answer has two names.
_THOUGHTS: Final = ("reasoning_content", "reasoning")
_FIELDS_BY_ROLE: Final[Mapping[str, frozenset[str]]] = {
    "assistant": _MESSAGE_FIELDS | {"tool_calls", *_THOUGHTS},
    "tool": _MESSAGE_FIELDS | {"tool_call_id"},
}
# OpenAI's two APIs have two names for the same part; the third is an answer of the second API, sent back.
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})
_ONLY: Final = "give role, content and name only"
_REMEDIES: Final[Mapping[str, str]] = {
    "function_call": "give tool_calls, which OpenAI's API has in its place",
    "tool_calls": "give it in an assistant's message",
    "tool_call_id": "give it in a tool's message",
}


def check_prompt(prompt: object, prefix: str = "") -> str | list[int]:
    """Return the prompt if it is a text that is not blank, or token ids.

    A list of one prompt is that prompt, as OpenAI's clients for many prompts write it.

    Raises:
        InvalidFieldError: The prompt is neither.
    """
    field = f"{prefix}prompt"
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        (prompt,) = prompt
    if isinstance(prompt, list):
        return check_token_ids(prompt, field)
    return check_text(prompt, field)


def check_text(prompt: object, field: str = "prompt") -> str:
    """Return a prompt's text.

    Raises:
        InvalidFieldError: It is no text, or a blank one.
    """
    if not isinstance(prompt, str):
        raise InvalidFieldError(field, f"is {kind(prompt)}", "give a string")
    if not prompt.strip():
        raise InvalidFieldError(field, "is empty", "give a text to continue")
    return prompt


def check_token_ids(token_ids: object, field: str) -> list[int]:
    """Return a prompt's token ids. The worker holds them to its model's vocabulary.

    Raises:
        InvalidFieldError: It is no list of token ids, or an empty one.
    """
    if isinstance(token_ids, list) and token_ids and all(type(one) is int for one in token_ids):
        if all(0 <= one <= _MAX_TOKEN_ID for one in token_ids):
            return token_ids
        raise InvalidFieldError(field, "holds a number that is no token id", "give ids of the target model's tokens")
    raise InvalidFieldError(field, "is a list", "give one string, or token ids; write one line per prompt")


def check_messages(messages: object, prefix: str = "") -> list[dict[str, Any]]:
    """Return the messages in their stored form: role, content as one string, and what else is given.

    That is ``name``, ``tool_calls``, ``tool_call_id`` and ``reasoning_content``.

    Content parts are joined by a newline, as vLLM does for templates that take text. ``developer`` becomes ``system``,
    its name in the chat templates of open models.

    Raises:
        InvalidFieldError: A message is malformed, all are empty, or a tool's message answers no call before it.
    """
    field = f"{prefix}messages"
    if not isinstance(messages, list):
        raise InvalidFieldError(
            field, f"is {kind(messages)}", 'give a list such as [{"role": "user", "content": "..."}]'
        )
    faults = Faults()
    plain = [faults.of(_message, message, f"{field}[{index}]") for index, message in enumerate(messages)]
    faults.settle()
    if not any(message["content"].strip() for message in plain):
        raise InvalidFieldError(field, "is empty", "give at least one message with a text")
    if len(plain) > 1 or plain[0]["role"] == "tool":
        _check_answered(plain, field)
    return plain


def _check_answered(messages: Sequence[Mapping[str, Any]], field: str) -> None:
    """Refuse a tool's message that answers none of the calls before it."""
    called: set[str] = set()
    for index, message in enumerate(messages):
        called.update(call["id"] for call in message.get("tool_calls", ()))
        if message["role"] == "tool" and message["tool_call_id"] not in called:
            remedy = "give the id of a call in an assistant's message before it"
            raise InvalidFieldError(f"{field}[{index}].tool_call_id", "is the id of no call", remedy)


def _message(message: object, field: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise InvalidFieldError(
            field, f"is {kind(message)}", 'give an object such as {"role": "user", "content": "..."}'
        )
    # Nearly all messages hold a role and a text and nothing else; to tell these at once makes reading a file faster.
    if message.keys() == _ROLE_AND_CONTENT and isinstance(message["content"], str) and message["role"] in _TEXT_ROLES:
        return {"role": "system" if message["role"] == "developer" else message["role"], "content": message["content"]}
    return _message_with_more(message, field)


def _message_with_more(message: Mapping[str, Any], field: str) -> dict[str, Any]:
    role, name = message.get("role"), message.get("name")
    known = _FIELDS_BY_ROLE.get(role, _MESSAGE_FIELDS) if isinstance(role, str) else _MESSAGE_FIELDS
    for given, value in message.items():
        # Messages copied from an OpenAI answer carry empty fields such as refusal: null and annotations: [].
        if given not in known and value not in (None, [], {}):
            raise InvalidFieldError(f"{field}.{short(given)}", "is not supported", _REMEDIES.get(given, _ONLY))
    if not isinstance(role, str) or role not in _ROLES:
        reason = f"is {short(role)}" if isinstance(role, str) else _absent_or_kind(message, "role")
        raise InvalidFieldError(f"{field}.role", reason, f"give one of {', '.join(_ROLES)}")
    calls = check_calls(message["tool_calls"], f"{field}.tool_calls") if message.get("tool_calls") else []
    content = "" if calls and message.get("content") is None else _content(message, f"{field}.content")
    plain: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": content}
    if name is not None:
        if not isinstance(name, str):
            raise InvalidFieldError(f"{field}.name", f"is {kind(name)}", "give a string or remove it")
        plain["name"] = name
    if calls:
        plain["tool_calls"] = calls
    if role == "tool":
        plain["tool_call_id"] = check_id(message.get("tool_call_id"), f"{field}.tool_call_id")
    if role == "assistant" and (thought := _thought(message, field)):
        plain["reasoning_content"] = thought
    return plain


def _thought(message: Mapping[str, Any], field: str) -> str:
    """The thinking of an earlier answer; empty without one."""
    for name in _THOUGHTS:
        thought = message.get(name)
        if thought is not None:
            if not isinstance(thought, str):
                raise InvalidFieldError(f"{field}.{name}", f"is {kind(thought)}", "give a string or remove it")
            return thought
    return ""


def _content(message: Mapping[str, Any], field: str) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidFieldError(field, _absent_or_kind(message, "content"), "give a string or a list of text parts")
    texts: list[str] = []
    for index, part in enumerate(content):
        if not _is_text_part(part):
            raise InvalidFieldError(f"{field}[{index}]", "is no text part", 'give {"type": "text", "text": "..."}')
        texts.append(part["text"])
    return "\n".join(texts)


def _is_text_part(part: object) -> TypeGuard[dict[str, Any]]:
    if not isinstance(part, dict):
        return False
    # Check the type first: a list or an object has no hash, so a set cannot look it up.
    kind_of_part = part.get("type")
    return isinstance(kind_of_part, str) and kind_of_part in _TEXT_PARTS and isinstance(part.get("text"), str)


def _absent_or_kind(values: Mapping[str, Any], name: str) -> str:
    return f"is {kind(values[name])}" if name in values else "is missing"
