"""Chat fields of a line beside roles and texts: the role of the last message, and arguments for the chat template."""

from __future__ import annotations

import json
from typing import Any, Final

from helix_jobs.errors import InvalidFieldError

MAX_ARGUMENT_CHARS: Final = 4096
MAX_ARGUMENT_DEPTH: Final = 8

# Arguments that Helix itself gives the template, and those that would make a prompt unfit for an answer.
_RESERVED: Final = frozenset(
    {
        "messages",
        "conversation",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "return_dict",
        "return_tensors",
    }
)


def check_last_role(role: str, field: str) -> None:
    """Refuse a chat that ends with the assistant's message: a template would close that turn and begin another.

    Raises:
        InvalidFieldError: The last message is the assistant's.
    """
    if role == "assistant":
        reason = "is assistant in the last message, which is the one to be answered"
        remedy = "end with a user's message; to have a beginning continued, submit it as a prompt"
        raise InvalidFieldError(field, reason, remedy)


def check_chat_template_kwargs(value: object, field: str) -> dict[str, Any]:
    """Return the arguments if they may be passed to a template; only the model's own template decides if it uses them.

    Args:
        value: Parsed JSON; None for no arguments.
        field: The field's name in an error message.

    Raises:
        InvalidFieldError: The value is not an object of small values, or a name is reserved.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidFieldError(field, "is no object", 'give an object such as {"enable_thinking": false}')
    for name in value:
        shown = f"{field}.{name}" if name.isidentifier() and len(name) < 64 else field  # noqa: PLR2004  (room in a table)
        if name in _RESERVED:
            raise InvalidFieldError(shown, "is set by Helix", "remove it")
        if shown == field:
            raise InvalidFieldError(field, "holds a name that no template can read", "give names like enable_thinking")
    if _is_deeper(value, MAX_ARGUMENT_DEPTH):
        raise InvalidFieldError(field, "is nested too deeply", f"give at most {MAX_ARGUMENT_DEPTH} levels")
    if (size := len(json.dumps(value))) > MAX_ARGUMENT_CHARS:
        raise InvalidFieldError(field, f"has {size:,} characters as JSON", f"give at most {MAX_ARGUMENT_CHARS:,}")
    return value


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in inner)
