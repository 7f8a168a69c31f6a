"""Translate the tools of Gemini's generateContent into ours.

Source: the API reference of Gemini's generateContent: Tool, ToolConfig and Schema.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.gemini_spellings import spelled, spellings
from helix_jobs.intake.line_faults import Faults, kind, refuse_others, short

if TYPE_CHECKING:
    from collections.abc import Mapping

_MODES: Final[Mapping[str, str]] = {"AUTO": "auto", "ANY": "required", "NONE": "none"}
_TYPES: Final = frozenset({"STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL"})
_COUNTS: Final = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_DECLARATION: Final = frozenset({"name", "description", "parameters", "parametersJsonSchema"})
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
            function, parameters = _function(declaration, place)
            names |= {inner: place, f"{inner}.function": place, f"{inner}.function.parameters": f"{place}.{parameters}"}
            found.append({"type": "function", "function": function})


def _function(declaration: object, place: str) -> tuple[dict[str, Any], str]:
    """A function in our form, and the field in which its parameters stand."""
    if not isinstance(declaration, dict):
        raise InvalidFieldError(place, f"is {kind(declaration)}", 'give {"name": "...", "parameters": {...}}')
    refuse_others(declaration, _DECLARATION, place)
    function = {name: declaration[name] for name in ("name", "description") if name in declaration}
    field = "parametersJsonSchema" if declaration.get("parametersJsonSchema") is not None else "parameters"
    if declaration.get(field) is not None:
        plain = field == "parametersJsonSchema"
        function["parameters"] = declaration[field] if plain else _json_schema(declaration[field])
    return function, field


def _json_schema(schema: Any) -> Any:  # noqa: ANN401  (JSON)
    """A schema in OpenAPI's form as a JSON schema: types in small letters, null as a type, counts as numbers."""
    if not isinstance(schema, dict):
        return schema
    plain = dict(schema)
    if isinstance(plain.get("type"), str) and plain["type"] in _TYPES:
        plain["type"] = plain["type"].lower()
    for name in _COUNTS:
        if isinstance(plain.get(name), str) and plain[name].isdecimal():
            plain[name] = int(plain[name])
    if isinstance(plain.get("properties"), dict):
        plain["properties"] = {name: _json_schema(inner) for name, inner in plain["properties"].items()}
    if "items" in plain:
        plain["items"] = _json_schema(plain["items"])
    if isinstance(plain.get("anyOf"), list):
        plain["anyOf"] = [_json_schema(inner) for inner in plain["anyOf"]]
    if plain.pop("nullable", None) is True:
        return {"anyOf": [plain, {"type": "null"}]}
    return plain


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
