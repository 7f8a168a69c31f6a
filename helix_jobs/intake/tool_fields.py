"""Check the functions that a chat may call, and the calls in its messages. OpenAI's form, which is also the stored one.

Source: the type definitions of openai-python (``chat_completion_tool_param``, ``chat_completion_message_tool_call``).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.chat_options import MAX_NAME_CHARS, ToolUse
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.line_faults import Faults, kind, short
from helix_jobs.json_depth import is_deeper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_TOOLS: Final = 128
MAX_CALLS: Final = 128
MAX_ID_CHARS: Final = 256
# Deeper values are refused: a template that writes them as JSON would run out of stack.
MAX_DEPTH: Final = 64
_NAME: Final = re.compile(rf"[\w.-]{{1,{MAX_NAME_CHARS}}}", re.ASCII)
_NAME_REMEDY: Final = f"give 1 to {MAX_NAME_CHARS} letters, digits, dots, hyphens or underscores"
_TOOL: Final = 'give {"type": "function", "function": {"name": "...", "parameters": {...}}}'
# Mistral's word beside OpenAI's.
_REQUIRED: Final = ("required", "any")
_ALLOWED: Final = "allowed_tools"
_MODES: Final = ("auto", "required")
_ALLOWED_REMEDY: Final = 'give {"mode": "auto", "tools": [{"type": "function", "function": {"name": "..."}}]}'


def check_tools(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the stored form of ``tools``, ``tool_choice`` and ``parallel_tool_calls``; empty without tools to call.

    Raises:
        InvalidFieldError: A tool is malformed, or the choice does not fit the tools.
    """
    choice, tools = values.get("tool_choice"), values.get("tools")
    if not tools and tools in (None, []):
        if choice not in (None, "none", "auto"):
            raise InvalidFieldError(f"{prefix}tool_choice", "stands without tools", "give tools, or remove it")
        return {}
    plain = _tools(tools, f"{prefix}tools")
    parallel = values.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        raise InvalidFieldError(f"{prefix}parallel_tool_calls", f"is {kind(parallel)}", "give true or false")
    stored: dict[str, Any] = {"tools": plain}
    if parallel is False:
        stored["parallel_tool_calls"] = False
    if isinstance(choice, dict) and choice.get("type") == _ALLOWED:
        choice, stored["tools"] = _allowed(choice, plain, f"{prefix}tool_choice")
    if choice in (None, "auto"):
        return stored
    if choice == "none":
        return {}
    return {**stored, "tool_choice": _choice(choice, plain, f"{prefix}tool_choice")}


def tool_use(stored: Mapping[str, Any]) -> ToolUse | None:
    """What ``check_tools`` stored, for the engine; None if an answer calls nothing.

    Raises:
        InvalidFieldError: As in ``check_tools``.
    """
    checked = check_tools(stored)
    if not checked:
        return None
    choice = checked.get("tool_choice")
    return ToolUse(
        tools=tuple(checked["tools"]),
        is_required=choice == "required",
        only=choice["function"]["name"] if isinstance(choice, dict) else None,
        is_parallel=checked.get("parallel_tool_calls", True),
    )


def _choice(choice: object, tools: Sequence[Mapping[str, Any]], field: str) -> Any:  # noqa: ANN401  (JSON)
    if isinstance(choice, str) and choice in _REQUIRED:
        return "required"
    name = _called_name(choice)
    if name is None:
        remedy = 'give "none", "auto", "required" or {"type": "function", "function": {"name": "..."}}'
        raise InvalidFieldError(field, "is no known choice", remedy)
    if name not in [tool["function"]["name"] for tool in tools]:
        raise InvalidFieldError(field, f"names {short(name)}, which is none of the tools", "give a tool's name")
    return {"type": "function", "function": {"name": name}}


def _allowed(choice: Mapping[str, Any], tools: list[Any], field: str) -> tuple[str, list[Any]]:
    """The choice among the tools that may be called, and these tools.

    The model sees these alone, so that it calls no other where nothing is enforced.

    Trade-off: OpenAI shows all of them, so that lines which allow different ones share their prompts' beginning. Here
    they share less of it.
    """
    _only(choice, ("type", _ALLOWED), field)
    field = f"{field}.{_ALLOWED}"
    allowed = choice.get(_ALLOWED)
    if not isinstance(allowed, dict):
        raise InvalidFieldError(field, "is missing" if allowed is None else f"is {kind(allowed)}", _ALLOWED_REMEDY)
    _only(allowed, ("mode", "tools"), field)
    mode, listed = allowed.get("mode"), allowed.get("tools")
    if not isinstance(mode, str) or mode not in _MODES:
        raise InvalidFieldError(f"{field}.mode", "is no known mode", f"give {' or '.join(_MODES)}")
    if not isinstance(listed, list) or not listed:
        reason = "is empty" if listed == [] else f"is {kind(listed)}"
        raise InvalidFieldError(f"{field}.tools", reason, _ALLOWED_REMEDY)
    offered = [tool["function"]["name"] for tool in tools]
    names: set[str] = set()
    for index, tool in enumerate(listed):
        name = _called_name(tool)
        if name is None:
            raise InvalidFieldError(f"{field}.tools[{index}]", "is no function", _ALLOWED_REMEDY)
        if name not in offered:
            reason = f"names {short(name)}, which is none of the tools"
            raise InvalidFieldError(f"{field}.tools[{index}]", reason, "give a tool's name")
        names.add(name)
    return mode, [tool for tool in tools if tool["function"]["name"] in names]


def _called_name(choice: object) -> str | None:
    """The name in ``{"type": "function", "function": {"name": "..."}}``; None if it is anything else."""
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _tools(tools: object, field: str) -> list[dict[str, Any]]:
    if not isinstance(tools, list):
        raise InvalidFieldError(field, f"is {kind(tools)}", f"in a list, {_TOOL}")
    if len(tools) > MAX_TOOLS:
        raise InvalidFieldError(field, f"holds {len(tools)} tools", f"give at most {MAX_TOOLS}")
    faults = Faults()
    plain = [faults.of(_tool, tool, f"{field}[{index}]") for index, tool in enumerate(tools)]
    faults.settle()
    names = [tool["function"]["name"] for tool in plain]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidFieldError(f"{field}[{index}].function.name", "is given twice", "give each its own name")
    return plain


def _tool(tool: object, field: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise InvalidFieldError(field, f"is {kind(tool)}", _TOOL)
    if tool.get("type", "function") != "function" or not isinstance(tool.get("function"), dict):
        raise InvalidFieldError(field, "is no function", _TOOL)
    _only(tool, ("type", "function"), field)
    function = tool["function"]
    inner = f"{field}.function"
    _only(function, ("name", "description", "parameters", "strict"), inner)
    _check_name(function.get("name"), f"{inner}.name")
    if not isinstance(function.get("description", ""), str | None):
        raise InvalidFieldError(f"{inner}.description", f"is {kind(function['description'])}", "give a string")
    if not isinstance(function.get("strict", False), bool | None):
        raise InvalidFieldError(f"{inner}.strict", f"is {kind(function['strict'])}", "give true or false")
    _check_parameters(function.get("parameters"), f"{inner}.parameters")
    # Nulls go: templates would write them. The order of the fields is that of the line, in which templates show them.
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _check_parameters(schema: object, field: str) -> None:
    """Check what a schema of parameters is at its top; what its keywords say is the grammar's matter."""
    if schema is None:
        return
    if not isinstance(schema, dict):
        raise InvalidFieldError(field, f"is {kind(schema)}", "give a JSON schema as an object")
    if schema.get("type", "object") != "object":
        raise InvalidFieldError(f"{field}.type", "is not object", "parameters are the fields of an object")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not all(isinstance(one, dict | bool) for one in properties.values()):
        raise InvalidFieldError(f"{field}.properties", "does not hold schemas", "give name: schema for each parameter")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise InvalidFieldError(f"{field}.required", "is no list of names", "give the names of parameters")
    if is_deeper(schema, MAX_DEPTH):
        raise InvalidFieldError(field, "is nested too deeply", f"give at most {MAX_DEPTH} levels")


def check_calls(calls: object, field: str) -> list[dict[str, Any]]:
    """Return the calls of an assistant's message in their stored form, with arguments as JSON text.

    Raises:
        InvalidFieldError: A call is malformed.
    """
    if not isinstance(calls, list):
        raise InvalidFieldError(field, f"is {kind(calls)}", "give a list of calls, or remove it")
    if len(calls) > MAX_CALLS:
        raise InvalidFieldError(field, f"holds {len(calls)} calls", f"give at most {MAX_CALLS}")
    return [_call(call, f"{field}[{index}]") for index, call in enumerate(calls)]


def _call(call: object, field: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or call.get("type", "function") != "function":
        remedy = 'give {"id": "...", "type": "function", "function": {"name": "...", "arguments": "{...}"}}'
        raise InvalidFieldError(field, "is no call of a function", remedy)
    _only(call, ("id", "type", "function", "index"), field)
    _only(function, ("name", "arguments"), f"{field}.function")
    _check_name(function.get("name"), f"{field}.function.name")
    identifier = check_id(call.get("id"), f"{field}.id")
    arguments = _arguments(function.get("arguments"), f"{field}.function.arguments")
    return {"id": identifier, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def check_id(identifier: object, field: str) -> str:
    """Return the id of a call.

    Raises:
        InvalidFieldError: It is no short text.
    """
    if not isinstance(identifier, str) or not 1 <= len(identifier) <= MAX_ID_CHARS:
        reason = "is missing" if identifier is None else "is no short string"
        raise InvalidFieldError(field, reason, f"give the call's id, 1 to {MAX_ID_CHARS} characters")
    return identifier


def _arguments(arguments: object, field: str) -> str:
    """The arguments as JSON text; OpenAI gives text, other programs give the object."""
    if isinstance(arguments, dict):
        value: object = arguments
        text = ""
    else:
        if arguments is None:
            arguments = ""
        if not isinstance(arguments, str):
            raise InvalidFieldError(field, f"is {kind(arguments)}", "give an object as JSON text")
        text = arguments
        try:
            value = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError) as error:
            raise InvalidFieldError(field, "is not JSON", "give an object as JSON text") from error
    if not isinstance(value, dict):
        raise InvalidFieldError(field, "is no object", "give an object as JSON text")
    if is_deeper(value, MAX_DEPTH):
        raise InvalidFieldError(field, "is nested too deeply", f"give at most {MAX_DEPTH} levels")
    return text if text.strip() else json.dumps(value, ensure_ascii=False)


def _check_name(name: object, field: str) -> None:
    if not isinstance(name, str):
        raise InvalidFieldError(field, "is missing" if name is None else f"is {kind(name)}", _NAME_REMEDY)
    if not _NAME.fullmatch(name):
        raise InvalidFieldError(field, "is no name of a function", _NAME_REMEDY)


def _only(values: Mapping[str, Any], names: Sequence[str], field: str) -> None:
    for name, value in values.items():
        if name not in names and value is not None:
            raise InvalidFieldError(f"{field}.{short(name)}", "is not supported", f"give {', '.join(names)} only")
