"""Translate the tools of Gemini's generateContent into ours.

Source: the API reference of Gemini's generateContent: Tool and ToolConfig.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.gemini_schema import json_schema
from helix_jobs.intake.gemini_spellings import spelled, spellings
from helix_jobs.intake.line_faults import Faults, kind, refuse_others, short

if TYPE_CHECKING:
    from collections.abc import Mapping

_MODES: Final[Mapping[str, str]] = {"AUTO": "auto", "ANY": "required", "NONE": "none"}
_CONFIG: Final = 'give {"functionCallingConfig": {"mode": "AUTO"}}'
_AT_THE_PROVIDER: Final = "is a tool that runs at the provider"


def gemini_tools(request: Mapping[str, Any], ours: dict[str, Any], names: dict[str, str]) -> None:
    """Set ``tools`` and ``tool_choice`` from a request, and note the paths of their fields.

    Raises:
        InvalidFieldError: A tool is none of the client's own, or the choice has no counterpart here.
        InvalidFieldsError: Several are.
    """
    tools = request.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise InvalidFieldError("request.tools", f"is {kind(tools)}", 'give [{"functionDeclarations": [...]}]')
    faults = Faults()
    functions: list[Any] = []
    for index, tool in enumerate(tools or ()):
        faults.of(_add_declarations, tool, f"request.tools[{index}]", functions, names)
    if tools:
        ours["tools"], names["tools"] = functions, "request.tools"
    faults.of(_set_choice, request, functions, ours, names)
    faults.settle()


def _set_choice(request: Mapping[str, Any], functions: list[Any], ours: dict[str, Any], names: dict[str, str]) -> None:
    name = spelled(request, "toolConfig", "request")
    if request.get(name) is not None:
        names["tool_choice"] = f"request.{name}"
        ours["tool_choice"] = _choice(request[name], f"request.{name}", functions)


def _add_declarations(tool: object, path: str, found: list[Any], names: dict[str, str]) -> None:
    if not isinstance(tool, dict):
        raise InvalidFieldError(path, f"is {kind(tool)}", 'give {"functionDeclarations": [...]}')
    for name, value in tool.items():
        if value is None:
            continue
        if name not in ("functionDeclarations", "function_declarations"):
            raise InvalidFieldError(f"{path}.{short(name)}", _AT_THE_PROVIDER, "give functionDeclarations")
        if not isinstance(value, list):
            raise InvalidFieldError(f"{path}.{name}", f"is {kind(value)}", "give a list of functions")
        for index, declaration in enumerate(value):
            place, inner = f"{path}.{name}[{index}]", f"tools[{len(found)}]"
            names |= {inner: place, f"{inner}.function": place}
            function = _function(declaration, place, f"{inner}.function.parameters", names)
            found.append({"type": "function", "function": function})


def _function(declaration: object, place: str, ours: str, names: dict[str, str]) -> dict[str, Any]:
    """A function in our form; its parameters' path is noted."""
    if not isinstance(declaration, dict):
        raise InvalidFieldError(place, f"is {kind(declaration)}", 'give {"name": "...", "parameters": {...}}')
    plain_name, openapi_name = spelled(declaration, "parametersJsonSchema", place), "parameters"
    refuse_others(declaration, {"name", "description", openapi_name, plain_name}, place)
    function = {name: declaration[name] for name in ("name", "description") if name in declaration}
    plain, openapi = declaration.get(plain_name), declaration.get(openapi_name)
    if plain is not None and openapi is not None:
        raise InvalidFieldError(f"{place}.{openapi_name}", f"stands beside {plain_name}", "give one of the two")
    names[ours] = f"{place}.{openapi_name if plain is None else plain_name}"
    if plain is not None:
        function["parameters"] = plain
    elif openapi is not None:
        function["parameters"] = json_schema(openapi, names[ours], ours, names)
    return function


def _choice(config: object, path: str, tools: list[Any]) -> Any:  # noqa: ANN401  (JSON)
    """``tool_choice`` from a tool config."""
    if not isinstance(config, dict):
        raise InvalidFieldError(path, "is no known choice", _CONFIG)
    name = spelled(config, "functionCallingConfig", path)
    refuse_others(config, spellings("functionCallingConfig"), path)
    calling = config.get(name)
    if not isinstance(calling, dict):
        raise InvalidFieldError(path, "is no known choice", _CONFIG)
    path = f"{path}.{name}"
    allowed_name = spelled(calling, "allowedFunctionNames", path)
    refuse_others(calling, {"mode", *spellings("allowedFunctionNames")}, path)
    mode, allowed, field = calling.get("mode", "AUTO"), calling.get(allowed_name), f"{path}.{allowed_name}"
    if not isinstance(mode, str) or mode.upper() not in _MODES:
        raise InvalidFieldError(f"{path}.mode", "is no known choice", f"give one of {', '.join(_MODES)}")
    choice = _MODES[mode.upper()]
    if allowed in (None, []):
        return choice
    if not isinstance(allowed, list):
        raise InvalidFieldError(field, f"is {kind(allowed)}", "give a list of functions' names")
    if choice != "required":
        raise InvalidFieldError(field, "stands beside a mode other than ANY", "give mode ANY, or remove it")
    if len(allowed) == 1:
        return {"type": "function", "function": {"name": allowed[0]}}
    declared = [tool["function"].get("name") for tool in tools]
    if unknown := [name for name in allowed if name not in declared]:
        named = short(unknown[0]) if isinstance(unknown[0], str) else kind(unknown[0])
        raise InvalidFieldError(field, f"names {named}, which is none of the tools", "give tools' names")
    if all(name in allowed for name in declared):
        return choice
    remedy = "name one function, or declare those alone that may be called"
    raise InvalidFieldError(field, "names some functions of several", remedy)
