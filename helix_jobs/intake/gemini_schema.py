"""Translate a schema in OpenAPI's form, which Gemini's generateContent has, into a JSON schema.

Source: the API references of Gemini and of Vertex AI: Schema.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.gemini_spellings import given_twice, spellings
from helix_jobs.intake.line_faults import Faults, kind, short
from helix_jobs.json_depth import is_deeper

if TYPE_CHECKING:
    from collections.abc import Mapping

_TYPES: Final = frozenset({"STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL"})
_COUNTS: Final = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_SINGLE: Final = ("items", "additionalProperties")
_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_WORDS: Final = (*_COUNTS, *_SINGLE, *_LISTS, "propertyOrdering")
# The other spelling of a word, and Vertex AI's words for references -> the word here.
_OURS: Final[Mapping[str, str]] = {spellings(word)[1]: word for word in _WORDS} | {"defs": "$defs", "ref": "$ref"}
# Deeper schemas are refused where a schema is checked.
_MAX_DEPTH: Final = 100
# A count of more digits is refused there, too.
_MAX_DIGITS: Final = 20


def json_schema(schema: object, theirs: str, ours: str, names: dict[str, str]) -> Any:  # noqa: ANN401  (JSON)
    """A schema in OpenAPI's form as a JSON schema.

    Types come in small letters and counts as numbers. ``propertyOrdering`` orders the properties, ``nullable`` becomes
    an option, and the texts in the ``enum`` of a number become numbers.

    Trade-off: an object with ``properties`` takes no others here, though OpenAPI lets others pass. Gemini's answers
    hold the declared ones only, and whoever wrote the schema for Gemini expects the same.

    Args:
        schema: Parsed JSON.
        theirs: The schema's path in the line.
        ours: Its path in our form.
        names: Receives the paths in the line of what stands elsewhere in our form.

    Raises:
        InvalidFieldError: A word has a value that it cannot have.
        InvalidFieldsError: Several have.
    """
    if is_deeper(schema, _MAX_DEPTH):
        return schema
    translation = _Translation(names)
    translated = translation.of(schema, theirs, ours)
    translation.faults.settle()
    return translated


class _Translation:
    """One translation of one schema."""

    def __init__(self, names: dict[str, str]) -> None:
        self.faults = Faults()
        self._names = names

    def of(self, schema: object, theirs: str, ours: str) -> Any:  # noqa: ANN401  (JSON)
        """One schema, with those in it."""
        if not isinstance(schema, dict):
            return schema
        nullable = schema.get("nullable")
        if nullable not in (None, True, False) or type(nullable) in (int, float):
            self.faults.add(InvalidFieldError(f"{theirs}.nullable", f"is {kind(nullable)}", "give true or false"))
        if nullable is not True:
            return self._words(schema, theirs, ours)
        self._names |= {f"{ours}.anyOf": theirs, f"{ours}.anyOf[0]": theirs}
        option = self._words(schema, theirs, f"{ours}.anyOf[0]")
        translated: dict[str, Any] = {"anyOf": [option, {"type": "null"}]}
        if "$defs" in option:  # references begin at the root
            translated["$defs"] = option.pop("$defs")
            self._names[f"{ours}.$defs"] = self._names.get(f"{ours}.anyOf[0].$defs", f"{theirs}.$defs")
        return translated

    def _words(self, schema: Mapping[str, Any], theirs: str, ours: str) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for given, value in schema.items():
            word = _OURS.get(given, given)
            if word == "nullable" or value is None:
                continue
            if word != given:
                if schema.get(word) is not None:
                    self.faults.add(given_twice(f"{theirs}.{short(given)}", word))
                self._names[f"{ours}.{word}"] = f"{theirs}.{given}"
            plain[word] = self._value(word, value, f"{theirs}.{short(given)}", f"{ours}.{short(word)}")
        _settle_enum(plain)
        ordering = plain.pop("propertyOrdering", None)
        properties = plain.get("properties")
        if isinstance(properties, dict) and properties:
            if ordering is not None:
                place = self._names.get(f"{ours}.propertyOrdering", f"{theirs}.propertyOrdering")
                plain["properties"] = self.faults.of(_ordered, properties, ordering, place)
            plain.setdefault("additionalProperties", False)
        return plain

    def _value(self, word: str, value: Any, theirs: str, ours: str) -> Any:  # noqa: ANN401  (JSON)
        if word == "type" and isinstance(value, str) and value.upper() in _TYPES:
            return value.lower()
        if word == "$ref" and isinstance(value, str):
            return value.replace("#/defs/", "#/$defs/", 1)
        if word in _COUNTS and isinstance(value, str) and value.isdecimal() and len(value) <= _MAX_DIGITS:
            return int(value)
        if word in ("properties", "$defs") and isinstance(value, dict):
            return {
                name: self.of(inner, f"{theirs}.{short(name)}", f"{ours}.{short(name)}")
                for name, inner in value.items()
            }
        if word in _LISTS and isinstance(value, list):
            return [self.of(inner, f"{theirs}[{index}]", f"{ours}[{index}]") for index, inner in enumerate(value)]
        return self.of(value, theirs, ours) if word in _SINGLE else value


def _settle_enum(plain: dict[str, Any]) -> None:
    """Take the format ``enum`` away, which says nothing more, and give numbers where the texts stand for numbers."""
    values = plain.get("enum")
    if not isinstance(values, list):
        return
    if plain.get("format") == "enum":
        del plain["format"]
    if plain.get("type") in ("integer", "number"):
        plain["enum"] = [_number(value) for value in values]


def _number(value: object) -> object:
    """The number that a text stands for; anything else as it is."""
    if not isinstance(value, str):
        return value
    for read in (int, float):
        try:
            number = read(value)
        except ValueError:
            continue
        return number if math.isfinite(number) else value
    return value


def _ordered(properties: Mapping[str, Any], ordering: object, path: str) -> dict[str, Any]:
    """The properties in the order that is asked for; behind them those that it does not name."""
    if not isinstance(ordering, list) or not all(isinstance(name, str) for name in ordering):
        raise InvalidFieldError(path, "is no list of names", "give the names of properties in their order")
    unknown = next((name for name in ordering if name not in properties), None)
    if unknown is not None:
        raise InvalidFieldError(path, f"names {short(unknown)}, which is none of the properties", "give their names")
    return {name: properties[name] for name in dict.fromkeys([*ordering, *properties])}
