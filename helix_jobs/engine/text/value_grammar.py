"""The grammar of a call's arguments in a syntax of the model's own: rules for the values of a JSON schema."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.grammar_text import json_options
from helix_jobs.engine.multiples import with_all_spellings
from helix_jobs.engine.text.grammar_rules import ANNOTATIONS, literal, not_enforced, spelt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from helix_jobs.engine.text.value_syntax import ValueSyntax

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER_WORDS: Final = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"},
)
# Type -> the words that are kept beside it.
_WORDS: Final = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength"}),
    "number": _NUMBER_WORDS,
    "integer": _NUMBER_WORDS,
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
_ANYWHERE: Final = ANNOTATIONS | {"type", "enum", "const", "anyOf", "$ref", "$defs", "definitions", "$schema", "$id"}
_DEFINED: Final = re.compile(r"#/(\$defs|definitions)/([^/]+)")


def argument_rules(
    rule: str, function: str, schema: Mapping[str, Any], syntax: ValueSyntax, added_tokens: Mapping[str, int]
) -> list[str]:
    """The rules of a function's arguments: those that its schema names, in the syntax's order.

    Args:
        rule: The name of the first rule.
        function: The function's name, for error messages.
        schema: The JSON schema of its parameters.
        syntax: How the model writes them.
        added_tokens: Added token -> its id.

    Raises:
        InvalidRequestError: The schema asks for something that this form cannot be held to.
    """
    maker = _Rules(rule, function, schema, syntax, added_tokens)
    return maker.made()


class _Rules:
    """The rules of one function's arguments. Each value gets a rule of its own, each definition one for all uses."""

    def __init__(
        self, rule: str, function: str, schema: Mapping[str, Any], syntax: ValueSyntax, added_tokens: Mapping[str, int]
    ) -> None:
        self._rule, self._function, self._root = rule, function, schema
        self._syntax, self._added = syntax, added_tokens
        self._made: list[str] = []
        self._count = 0
        self._shared: dict[str, str] = {}

    def made(self) -> list[str]:
        """All rules, the first one first."""
        syntax, schema = self._syntax, {"type": "object", **self._root}
        if schema["type"] != "object" or not schema.keys() <= _ANYWHERE | _WORDS["object"] or "anyOf" in schema:
            raise not_enforced(self._function, "parameters that are no plain object")
        inner = self._members(schema, ("", ""), syntax.assigns)
        first = f"{self._rule}: {self._spelt(syntax.opens)} {inner} {self._spelt(syntax.closes)}"
        return [first, *self._made]

    def _members(self, schema: Mapping[str, Any], key: tuple[str, str], colon: str) -> str:
        """The members of an object: the required ones, and any of the others, in one order."""
        properties, required = dict(schema.get("properties", {})), schema.get("required", [])
        properties |= {name: {} for name in required if name not in properties}
        names = [name for name in properties if properties[name] is not False or name in required]
        if not names and schema.get("additionalProperties", True) is not False:
            return self._any_members(key, colon)
        if self._syntax.is_sorted:
            names.sort(key=str.lower)
        parts = []
        for name in names:
            if not _NAME.fullmatch(name):
                raise not_enforced(self._function, "a parameter's name with other characters than letters and digits")
            value = self._value(properties[name])
            parts.append((f"{self._spelt(key[0] + name + key[1] + colon)} {value}", name in required))
        return self._in_order(parts)

    def _in_order(self, parts: Sequence[tuple[str, bool]]) -> str:
        """Members in their order with separators between them. ``rest_N`` is what may follow a member before N."""
        if not parts:
            return '""'
        separator, label = self._spelt(self._syntax.separator), self._label("rest")
        for number in range(len(parts) - 1, 0, -1):
            member, is_required = parts[number]
            after = f"{label}_{number + 1}" if number + 1 < len(parts) else '""'
            here = f"{separator} {member} {after}"
            self._made.append(f"{label}_{number}: {here}" + ("" if is_required else f" | {after}"))
        options = []
        for number, (member, is_required) in enumerate(parts):
            options.append(f"{member} {label}_{number + 1}" if number + 1 < len(parts) else member)
            if is_required:
                break
        else:
            options.append('""')
        return f"({' | '.join(options)})"

    def _value(self, schema: object) -> str:
        """The name of the rule of a value."""
        if schema is True or schema == {}:
            return self._any()
        if not isinstance(schema, dict):
            raise not_enforced(self._function, "a parameter that may have no value")
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        name = self._label("value")
        self._made.append(f"{name}: {self._options(schema)}")
        return name

    def _reference(self, reference: object) -> str:
        found = _DEFINED.fullmatch(reference) if isinstance(reference, str) else None
        holder = self._root.get(found[1]) if found is not None else None
        if found is None or not isinstance(holder, dict) or found[2] not in holder:
            raise not_enforced(self._function, "a $ref that points outside of $defs")
        name = self._shared.get(found[2])
        if name is None:
            name = self._shared[found[2]] = self._label("shared")
            # A definition may hold itself, so its name is known before its rule is.
            self._made.append(f"{name}: {self._value(holder[found[2]])}")
        return name

    def _options(self, schema: Mapping[str, Any]) -> str:
        """What a value of a schema may be."""
        if "anyOf" in schema:
            if not schema.keys() <= ANNOTATIONS | {"anyOf"}:
                raise not_enforced(self._function, "anyOf beside other words")
            return " | ".join(self._value(option) for option in schema["anyOf"])
        if "const" in schema or "enum" in schema:
            return self._choice(schema)
        types = schema.get("type", ())
        types = (types,) if isinstance(types, str) else tuple(types)
        kept = _ANYWHERE.union(*(_WORDS[kind] for kind in types))
        if not types or (word := next((word for word in schema if word not in kept and word[:2] != "x-"), None)):
            raise not_enforced(self._function, f"{word} of a value" if types else "a value without a type")
        return " | ".join(self._of_type(kind, schema) for kind in types)

    def _choice(self, schema: Mapping[str, Any]) -> str:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if "const" in schema and "enum" in schema:
            values = [value for value in values if value in schema["enum"]]
        kinds = schema.get("type")
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        # The words beside an enumeration are kept by leaving out the values that do not fit.
        if not schema.keys() <= _ANYWHERE or any(isinstance(value, dict | list) for value in values):
            raise not_enforced(self._function, "an enum beside other words, or of lists or objects")
        fitting = [value for value in values if kinds is None or _kind(value) in _with_integers(kinds)]
        texts = [text for value in fitting for text in self._literals(value)]
        if not texts:
            raise not_enforced(self._function, "a value that nothing fits")
        return " | ".join(texts)

    def _of_type(self, kind: str, schema: Mapping[str, Any]) -> str:
        if kind in ("boolean", "null"):
            words = self._syntax.booleans if kind == "boolean" else self._syntax.nulls
            return " | ".join(map(self._spelt, words))
        if kind == "string":
            return self._text(schema.get("minLength", 0), schema.get("maxLength"))
        if kind == "array":
            return self._list(schema)
        if kind == "object":
            key = self._syntax.object_key
            return f'"{{" {self._members(schema, key, self._syntax.colon)} "}}"'
        bounds = {word: schema[word] for word in schema if word in _NUMBER_WORDS - {"format"}}
        name = self._label("number")
        number = json.dumps({"type": kind, **with_all_spellings(bounds), "x-guidance": json_options()})
        self._made.append(f"{name}: %json {number}")
        return name

    def _list(self, schema: Mapping[str, Any]) -> str:
        items = schema.get("items", True)
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if items is False or most == 0:
            return '"[" "]"'
        item, separator = self._value(items), self._spelt(self._syntax.separator)
        further = f"({separator} {item}){{{max(0, least - 1)},{'' if most is None else most - 1}}}"
        inner = f"{item} {further}"
        return f'"[" {inner} "]"' if least else f'"[" ({inner})? "]"'

    def _text(self, least: int, most: int | None) -> str:
        """A text between its quotes, which it does not hold."""
        quote, name = self._syntax.quote, self._label("TEXT").upper()
        count = f"{{{least},{'' if most is None else most}}}"
        if not quote:
            single, double = (rf"{mark}([^{mark}\\\n\r]|\\[\\'\"nrt]){count}{mark}" for mark in ("'", '"'))
            self._made.append(f"{name}: /{single}|{double}/")
            return name
        mark = literal(quote)
        if quote in self._added:
            self._made.append(f"{name}: /(?s:.{count})/ & ~/(?s:.*){mark}(?s:.*)/")
            token = self._spelt(quote)
            return f"{token} {name} {token}"
        self._made.append(f"{name}: /{mark}(?s:.{count}){mark}/ & ~/(?s:.+){mark}(?s:.+)/")
        return name

    def _literals(self, value: object) -> list[str]:
        """The spellings of one plain value."""
        if value is None:
            return list(map(self._spelt, self._syntax.nulls))
        if isinstance(value, bool):
            return [self._spelt(self._syntax.booleans[0 if value else 1])]
        if not isinstance(value, str):
            return [json.dumps(json.dumps(value))]
        quote = self._syntax.quote
        if quote:
            return [] if quote in value else [self._spelt(f"{quote}{value}{quote}")]
        return [self._spelt(text) for text in dict.fromkeys((repr(value), json.dumps(value, ensure_ascii=False)))]

    def _any(self) -> str:
        """The name of the rule of any value."""
        if "" not in self._shared:
            name = self._shared[""] = self._label("any")
            plain = [self._of_type(kind, {}) for kind in ("string", "number", "boolean", "null", "array")]
            key = self._syntax.object_key
            plain.append(f'"{{" {self._any_members(key, self._syntax.colon)} "}}"')
            self._made.append(f"{name}: {' | '.join(plain)}")
        return self._shared[""]

    def _any_members(self, key: tuple[str, str], colon: str) -> str:
        """Any number of members of any name."""
        name = self._label("NAME").upper()
        self._made.append(f"{name}: /{literal(key[0])}[A-Za-z_][A-Za-z0-9_]*{literal(key[1])}/")
        member = f"{name} {self._spelt(colon)} {self._any()}"
        return f"({member} ({self._spelt(self._syntax.separator)} {member})*)?"

    def _label(self, what: str) -> str:
        self._count += 1
        return f"{self._rule}_{what}_{self._count}"

    def _spelt(self, text: str) -> str:
        return spelt(text, self._added)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    if isinstance(value, str):
        return "string"
    return "number" if isinstance(value, float) and not value.is_integer() else "integer"


def _with_integers(kinds: Sequence[str]) -> Sequence[str]:
    return (*kinds, "integer") if "number" in kinds else kinds
