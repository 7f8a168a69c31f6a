"""Translate tools and thinking of other providers' lines into ours, where both mean the same.

Sources: the API references of Anthropic's Messages and OpenAI's Responses.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.line_faults import kind, refuse_others

if TYPE_CHECKING:
    from collections.abc import Mapping

_TOOL_PATH: Final = re.compile(r"((?:body\.)?tools)(\[\d+\])?(?:\.function)?(\..*)?", re.DOTALL)
_ANTHROPIC_CHOICES: Final[Mapping[str, str]] = {"auto": "auto", "any": "required", "none": "none"}
_ANTHROPIC_FIELDS: Final = frozenset({"type", "name", "description", "input_schema", "strict"})


def anthropic_tools(params: Mapping[str, Any], ours: dict[str, Any]) -> None:
    """Set ``tools``, ``tool_choice`` and ``parallel_tool_calls`` from a Messages request.

    Raises:
        InvalidFieldError: A tool is none of the client's own, or the choice is unknown.
    """
    tools, choice = params.get("tools"), params.get("tool_choice")
    if tools is not None:
        ours["tools"] = tools
    if isinstance(tools, list):
        ours["tools"] = [_anthropic_tool(tool, f"params.tools[{index}]") for index, tool in enumerate(tools)]
    if choice is None:
        return
    word = choice.get("type") if isinstance(choice, dict) else None
    if word == "tool":
        ours["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif isinstance(word, str) and word in _ANTHROPIC_CHOICES:
        ours["tool_choice"] = _ANTHROPIC_CHOICES[word]
    else:
        raise InvalidFieldError("params.tool_choice", "is no known choice", 'give {"type": "auto"}, any, tool or none')
    if choice.get("disable_parallel_tool_use") is True:
        ours["parallel_tool_calls"] = False


def _anthropic_tool(tool: object, path: str) -> object:
    if not isinstance(tool, dict):
        return tool
    if tool.get("type", "custom") != "custom":
        raise InvalidFieldError(f"{path}.type", "is a tool that runs at the provider", "give tools of your own")
    refuse_others(tool, _ANTHROPIC_FIELDS, path)
    function = {name: value for name, value in tool.items() if name in ("name", "description", "strict")}
    return {"type": "function", "function": {**function, "parameters": tool.get("input_schema")}}


def anthropic_thinking(params: Mapping[str, Any], ours: dict[str, Any]) -> None:
    """Set the thinking and its budget from a Messages request; ``disabled``, the default there, asks for nothing.

    Raises:
        InvalidFieldError: The setting is unknown.
    """
    thinking = params.get("thinking")
    if thinking is None or thinking == {"type": "disabled"}:
        return
    if not isinstance(thinking, dict) or thinking.keys() != {"type", "budget_tokens"} or thinking["type"] != "enabled":
        remedy = 'give {"type": "enabled", "budget_tokens": 1024}, or remove it'
        raise InvalidFieldError("params.thinking", "is no known setting", remedy)
    ours["enable_thinking"], ours["max_reasoning_tokens"] = True, thinking["budget_tokens"]


def responses_tools(body: Mapping[str, Any], ours: dict[str, Any]) -> None:
    """Set ``tools`` and ``tool_choice`` from a Responses request, where a tool is its function."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if isinstance(tools, list):
        ours["tools"] = [_nested(tool) for tool in tools]
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools" and "allowed_tools" not in choice:
        allowed = {name: value for name, value in choice.items() if name != "type"}
        if isinstance(allowed.get("tools"), list):
            allowed["tools"] = [_nested(tool) for tool in allowed["tools"]]
        ours["tool_choice"] = {"type": "allowed_tools", "allowed_tools": allowed}
    elif isinstance(choice, dict) and "name" in choice:
        ours["tool_choice"] = _nested(choice)


def _nested(tool: object) -> object:
    if not isinstance(tool, dict) or "function" in tool:
        return tool
    function = {name: value for name, value in tool.items() if name != "type"}
    return {"type": tool.get("type"), "function": function}


def responses_thinking(body: Mapping[str, Any], ours: dict[str, Any]) -> None:
    """Set ``reasoning_effort`` from a Responses request.

    Raises:
        InvalidFieldError: The setting asks for more than an effort.
    """
    reasoning = body.get("reasoning")
    if reasoning is None:
        return
    if not isinstance(reasoning, dict):
        raise InvalidFieldError("body.reasoning", f"is {kind(reasoning)}", 'give {"effort": "low"}, or remove it')
    refuse_others(reasoning, ("effort",), "body.reasoning")
    if reasoning.get("effort") is not None:
        ours["reasoning_effort"] = reasoning["effort"]


def tool_path(name: str, theirs: str, parameters: str) -> str | None:
    """The path of a tool's field in the original line; None for the path of anything else.

    Args:
        name: The field's path in our form.
        theirs: The original name of ``tools``.
        parameters: The original name of a function's parameters.
    """
    found = _TOOL_PATH.fullmatch(name)
    if found is None:
        return None
    rest = (found[3] or "").replace(".parameters", f".{parameters}", 1)
    return f"{theirs}{found[2] or ''}{rest}"
