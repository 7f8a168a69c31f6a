"""FieldKind: what a column of a result table holds, and how a value of JSON is fitted into it. Pure."""

from __future__ import annotations

import json
import math
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import ConfigurationError
from helix_jobs.intake.line_faults import cut, short
from helix_jobs.json_line import json_line
from helix_jobs.tables.row import row_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_INT64: Final = range(-(2**63), 2**63)


class FieldKind(StrEnum):
    """A column's type. ``JSON`` is a list or an object: itself in JSON lines, JSON text elsewhere."""

    STRING = "string"
    INT = "int64"
    DOUBLE = "double"
    BOOL = "bool"
    STRINGS = "list of string"
    NUMBERS = "list of double"
    JSON = "json"


_OF_SCHEMA: Final = {
    "string": FieldKind.STRING,
    "integer": FieldKind.INT,
    "number": FieldKind.DOUBLE,
    "boolean": FieldKind.BOOL,
}
# Keywords with several schemas of one value, whose kinds a column must hold.
_CHOICES: Final = ("anyOf", "oneOf", "allOf")
# A schema may refer to itself.
_MOST_REFERENCES: Final = 8
_LISTS: Final = {
    FieldKind.STRING: FieldKind.STRINGS,
    FieldKind.INT: FieldKind.NUMBERS,
    FieldKind.DOUBLE: FieldKind.NUMBERS,
}


def fields_of_schema(schema: object) -> dict[str, FieldKind]:
    """The columns of answers that are held to a JSON schema: the properties of its object."""
    root = _resolved(schema, schema)
    properties = root.get("properties") if isinstance(root, dict) else None
    if not isinstance(properties, dict):
        return {}
    return {str(name): _kind_of_schema(value, schema) or FieldKind.JSON for name, value in properties.items()}


def merged(first: Mapping[str, FieldKind], second: Mapping[str, FieldKind]) -> dict[str, FieldKind]:
    """The columns of both, each of a kind that holds the values of both."""
    found = dict(first)
    for name, kind in second.items():
        found[name] = common(found[name], kind) if name in found else kind
    return found


def common(first: FieldKind, second: FieldKind) -> FieldKind:
    """A kind that holds the values of both."""
    if first == second:
        return first
    if {first, second} == {FieldKind.INT, FieldKind.DOUBLE}:
        return FieldKind.DOUBLE
    return FieldKind.JSON


def kind_of_value(value: object) -> FieldKind | None:
    """The kind of a column that holds such values; None for a value that tells nothing."""
    if value is None:
        return None
    if isinstance(value, bool):
        return FieldKind.BOOL
    if isinstance(value, int):
        return FieldKind.INT if value in _INT64 else FieldKind.JSON
    if isinstance(value, float):
        return FieldKind.DOUBLE
    return FieldKind.JSON if isinstance(value, dict | list | tuple) else FieldKind.STRING


def fitted(value: Any, kind: FieldKind) -> Any:  # noqa: ANN401  (any JSON value)
    """A value of JSON as the column's type; None where it does not fit."""
    if value is None or kind is FieldKind.JSON:
        return value
    if kind in (FieldKind.STRINGS, FieldKind.NUMBERS):
        inner = FieldKind.STRING if kind is FieldKind.STRINGS else FieldKind.DOUBLE
        return [fitted(item, inner) for item in value] if isinstance(value, list) else None
    found = kind_of_value(value)
    if found == kind:
        return value
    if kind is FieldKind.DOUBLE and found is FieldKind.INT:
        return float(value)
    if kind is FieldKind.INT and found is FieldKind.DOUBLE and value.is_integer() and int(value) in _INT64:
        return int(value)
    return None


def plain(value: Any, column: str) -> Any:  # noqa: ANN401  (any value of a table)
    """A value of a column as JSON has it: dates and the like as text.

    Raises:
        ConfigurationError: It has no form in JSON, such as the bytes of a picture.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    try:
        return json.loads(row_json(value), parse_constant=lambda _: None)
    except ValueError as error:
        raise ConfigurationError(
            f"the column {short(column)} {cut(str(error))}, which JSON and CSV cannot have; write .parquet or .arrow "
            "from a typed table, or submit a table without the column"
        ) from error


def in_json(value: Any, column: str) -> Any:  # noqa: ANN401  (any value of a table)
    """A value of a column for a line of JSON, which has no NaN and no infinity: these are null.

    Raises:
        ConfigurationError: It has no form in JSON.
    """
    return None if isinstance(value, float) and not math.isfinite(value) else plain(value, column)


def flat(value: Any) -> Any:  # noqa: ANN401  (any JSON value)
    """A value for a cell of text: lists and objects as JSON text."""
    return json_line(value) if isinstance(value, dict | list) else value


def _resolved(schema: object, root: object) -> object:
    """The schema itself, or the definition that it refers to, perhaps by way of others."""
    for _ in range(_MOST_REFERENCES):
        if not isinstance(schema, dict) or "$ref" not in schema:
            return schema
        found = root
        for part in str(schema["$ref"]).removeprefix("#").split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        schema = found
    return None  # it refers to itself


def _kind_of_schema(schema: object, root: object, depth: int = 0) -> FieldKind | None:
    """The kind of a column of such values; None for a schema of null alone, which tells nothing."""
    schema = _resolved(schema, root)
    if not isinstance(schema, dict) or depth > _MOST_REFERENCES:
        return FieldKind.JSON
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        return _common_of(map(kind_of_value, values))
    for name in _CHOICES:
        if isinstance(branches := schema.get(name), list) and branches and "type" not in schema:
            return _common_of(_kind_of_schema(branch, root, depth + 1) for branch in branches)
    stated = schema.get("type")
    names = [name for name in (stated if isinstance(stated, list) else [stated]) if name != "null"]
    if names == ["array"]:
        inner = _kind_of_schema(schema.get("items"), root, depth + 1)
        return FieldKind.JSON if inner is None else _LISTS.get(inner, FieldKind.JSON)
    return _common_of(_OF_SCHEMA.get(str(name), FieldKind.JSON) for name in names)


def _common_of(kinds: Iterable[FieldKind | None]) -> FieldKind | None:
    found: FieldKind | None = None
    for kind in kinds:
        if kind is not None:
            found = kind if found is None else common(found, kind)
    return found
