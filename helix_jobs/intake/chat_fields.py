"""Chat fields of a line beside its messages: arguments for the template, thinking, tools, and whether it continues."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.combinations import CHAT_AND_PROMPT
from helix_jobs.intake.constraint_fields import checked_schema
from helix_jobs.intake.line_faults import Faults, asks_for_nothing, kind
from helix_jobs.intake.reasoning_fields import REASONING_FIELDS, check_reasoning
from helix_jobs.intake.tool_fields import check_tools
from helix_jobs.json_depth import is_deeper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
# Fields that a line may hold beside messages -> the values that ask for nothing.
CHAT_FIELDS: Final[Mapping[str, tuple[Any, ...]]] = {
    "chat_template_kwargs": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    **dict.fromkeys(REASONING_FIELDS, ()),
}


def check_chat(values: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], prefix: str = "") -> dict[str, Any]:
    """Return the stored form of the fields beside checked messages.

    A last message of the assistant is continued; nothing has to ask for it.

    Raises:
        InvalidFieldError: A field is wrong.
        InvalidFieldsError: Several are.
    """
    if values.keys().isdisjoint(CHAT_FIELDS) and messages[-1]["role"] != "assistant":
        return {}
    faults = Faults()
    name = "chat_template_kwargs"
    arguments = faults.of(check_chat_template_kwargs, values.get(name), f"{prefix}{name}")
    continued = faults.of(continues, values, messages, prefix)
    tools = faults.of(_tools, values, prefix)
    reasoning = faults.of(check_reasoning, values, prefix)
    faults.settle()
    stored: dict[str, Any] = {name: arguments} if arguments else {}
    if continued:
        stored["continue_final_message"] = True
    if reasoning:
        stored["reasoning"] = reasoning
    return stored | tools


def refuse_beside_prompt(values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse fields of a chat beside a prompt.

    Raises:
        InvalidFieldError: The first of them that asks for anything.
    """
    if values.keys().isdisjoint(CHAT_FIELDS):
        return
    # Beside choices these are refused whatever the question is.
    told = ("tools", "max_reasoning_tokens", "thinking_token_budget") if values.get("choices") is not None else ()
    for name, nothing in CHAT_FIELDS.items():
        if name not in told and not asks_for_nothing(values.get(name), nothing):
            raise CHAT_AND_PROMPT.error(f"{prefix}{name}")


def continues(values: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], prefix: str = "") -> bool:
    """Whether the answer goes on with the last message.

    Raises:
        InvalidFieldError: The fields that say so contradict the messages, or the last message cannot be continued.
    """
    asked, begins = values.get("continue_final_message"), values.get("add_generation_prompt")
    for name, value in (("continue_final_message", asked), ("add_generation_prompt", begins)):
        if value is not None and not isinstance(value, bool):
            raise InvalidFieldError(f"{prefix}{name}", f"is {kind(value)}", "give true or false, or remove it")
    last, field = messages[-1], f"{prefix}messages[{len(messages) - 1}]"
    if last["role"] != "assistant":
        if asked:
            reason = "is true, and the last message is not the assistant's"
            raise InvalidFieldError(f"{prefix}continue_final_message", reason, "remove it, or end with the assistant's")
        if begins is False:
            reason = "is false, and the last message is not the assistant's"
            raise InvalidFieldError(f"{prefix}add_generation_prompt", reason, "remove it; an answer begins a turn")
        return False
    if last.get("tool_calls"):
        raise InvalidFieldError(f"{field}.tool_calls", "stand in the last message", "end with a tool's message")
    if not last["content"].strip():
        raise InvalidFieldError(f"{field}.content", "is empty, and nothing can be continued", "leave the message out")
    if asked is False or begins:
        name = "continue_final_message" if asked is False else "add_generation_prompt"
        reason = f"is {str(begins if asked is not False else asked).lower()}, and the last message is the assistant's"
        remedy = "remove it to have that message continued, or end with a user's message"
        raise InvalidFieldError(f"{prefix}{name}", reason, remedy)
    return True


def _tools(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The stored form of the tools.

    A call that must be made is held to its function's parameters: these are checked as the schema of an answer is.
    """
    stored = check_tools(values, prefix)
    choice = stored.get("tool_choice")
    if choice is None:
        return stored
    only = choice["function"]["name"] if isinstance(choice, dict) else None
    # Of the line's tools those that may be called are stored.
    places = {tool["function"]["name"]: index for index, tool in enumerate(values["tools"])}
    faults = Faults()
    for tool in stored["tools"]:
        function = tool["function"]
        if only in (None, function["name"]) and "parameters" in function:
            field = f"{prefix}tools[{places[function['name']]}].function.parameters"
            function["parameters"] = faults.of(checked_schema, function["parameters"], field)
    faults.settle()
    return stored


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
    if is_deeper(value, MAX_ARGUMENT_DEPTH):
        raise InvalidFieldError(field, "is nested too deeply", f"give at most {MAX_ARGUMENT_DEPTH} levels")
    if (size := len(json.dumps(value))) > MAX_ARGUMENT_CHARS:
        raise InvalidFieldError(field, f"has {size:,} characters as JSON", f"give at most {MAX_ARGUMENT_CHARS:,}")
    return value
