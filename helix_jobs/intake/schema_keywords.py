"""The words of a JSON schema: those that the grammar library keeps, and why each of the others is refused."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

TYPES: Final = ("null", "boolean", "integer", "number", "string", "array", "object")
FORMATS: Final = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")

SUBSCHEMAS: Final = frozenset({"items", "additionalItems", "additionalProperties"})
SUBSCHEMA_LISTS: Final = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
SUBSCHEMA_MAPS: Final = frozenset({"properties", "patternProperties"})
# Schemas that are only used where a $ref names them.
DEFINITIONS: Final = frozenset({"$defs", "definitions"})
COUNTS: Final = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})
BOUNDS: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
KEPT: Final = (
    SUBSCHEMAS
    | SUBSCHEMA_LISTS
    | SUBSCHEMA_MAPS
    | COUNTS
    | BOUNDS
    | {"$ref", "type", "enum", "const", "required", "pattern", "format", "multipleOf"}
)
# Words that ask nothing of an answer: JSON Schema's, OpenAPI's, and those of common generators.
_ANNOTATIONS: Final = DEFINITIONS | {
    *("$schema", "$id", "id", "$anchor", "$comment", "$vocabulary", "title", "description", "default", "examples"),
    *("example", "deprecated", "readOnly", "writeOnly", "discriminator", "externalDocs", "xml", "enumNames"),
    *("data", "multiple", "note", "propertyOrder", "propertyOrdering"),
}
_NOT_KEPT: Final = "asks for something that a grammar cannot keep"
_BRANCHES: Final = "write each case as an option of anyOf"
_OTHER_DIALECT: Final = "is no word of JSON Schema since draft 4, so it would have no effect"
# Word -> reason and remedy. Some have a meaning in some drafts only; where they have none, they would be ignored, which
# is not what their author meant.
REFUSED: Final[Mapping[str, tuple[str, str]]] = {
    "not": (_NOT_KEPT, "say what is allowed, with enum, pattern or anyOf"),
    "if": (_NOT_KEPT, _BRANCHES),
    "then": (_NOT_KEPT, _BRANCHES),
    "else": (_NOT_KEPT, _BRANCHES),
    "dependencies": (_NOT_KEPT, _BRANCHES),
    "dependentSchemas": (_NOT_KEPT, _BRANCHES),
    "dependentRequired": (_NOT_KEPT, _BRANCHES),
    "uniqueItems": (_NOT_KEPT, "remove it, and look for repeated items in the answers"),
    "contains": (_NOT_KEPT, "give prefixItems if the item has a place, or remove it"),
    "minContains": (_NOT_KEPT, "remove it"),
    "maxContains": (_NOT_KEPT, "remove it"),
    "propertyNames": (_NOT_KEPT, "use patternProperties with additionalProperties false"),
    "unevaluatedProperties": (_NOT_KEPT, "use additionalProperties, with all properties in one place"),
    "unevaluatedItems": (_NOT_KEPT, "use items beside prefixItems"),
    "contentEncoding": (_NOT_KEPT, "remove it, or give a pattern"),
    "contentMediaType": (_NOT_KEPT, "remove it, or describe the content as an object of its own"),
    "contentSchema": (_NOT_KEPT, "remove it, or describe the content as an object of its own"),
    "$dynamicRef": (_NOT_KEPT, "use $ref"),
    "$dynamicAnchor": (_NOT_KEPT, "use $ref with a path such as #/$defs/name"),
    "$recursiveRef": (_NOT_KEPT, "use $ref"),
    "$recursiveAnchor": (_NOT_KEPT, "use $ref"),
    "nullable": ("is OpenAPI's word, which JSON Schema does not have", 'use type, as in ["string", "null"]'),
    "extends": (_OTHER_DIALECT, "use allOf"),
    "disallow": (_OTHER_DIALECT, "say what is allowed"),
    "divisibleBy": (_OTHER_DIALECT, "use multipleOf"),
    "formatMinimum": (_OTHER_DIALECT, "remove it"),
    "formatMaximum": (_OTHER_DIALECT, "remove it"),
    "$data": (_OTHER_DIALECT, "write the value itself"),
    "x-guidance": ("sets options of the grammar library", "remove it"),
}
# Refused words -> the value with which they ask for nothing.
NEUTRAL: Final[Mapping[str, bool]] = {"uniqueItems": False, "nullable": False}
_WORDS: Final = sorted(KEPT | REFUSED.keys())
_BY_SPELLING: Final = {word.lower(): word for word in _WORDS}
# Least similarity of a misspelling: minLenght and minLength reach it, enumNames and enum do not.
_ALIKE: Final = 0.85


# Words that the library applies at their place in a schema; the others it takes together, once for each type.
_IN_PLACE: Final = frozenset({"const", "enum", "allOf", "anyOf", "oneOf", "$ref"})
_WITHIN_A_TYPE: Final[Mapping[str, int]] = {
    "prefixItems": 0,
    "items": 1,
    "additionalItems": 1,
    "properties": 2,
    "patternProperties": 3,
    "additionalProperties": 4,
}


def library_order(schema: Mapping[str, object]) -> dict[str, tuple[int, int]]:
    """Return each word's place in the order in which the library goes through a schema."""
    types = schema.get("type")
    listed = types if isinstance(types, list) else []
    object_first = "array" in listed[listed.index("object") :] if "object" in listed else False
    order: dict[str, tuple[int, int]] = {}
    group = 0
    for word in schema:
        if word in _IN_PLACE:
            order[word] = (group + 1, 0)
            group += 2
        else:
            rank = _WITHIN_A_TYPE.get(word, 0)
            # With an object's words first, they come before an array's two places.
            order[word] = (group, rank - 5 if object_first and rank > 1 else rank)
    return order


def misspelt(word: str) -> str | None:
    """Return the word of JSON Schema that an unknown word probably stands for; None if it is like none of them.

    JSON Schema lets unknown words pass, and so does Helix: generators add words of their own by the dozen. A word that
    begins with ``x-``, or with a mark such as in ``_enum``, was meant to be unknown.

    Trade-off: a word that is merely like one that counts is refused, so that a misspelt ``requred`` does not cost a
    night of incomplete answers; an author of such a word must rename it, say to ``x-requred``.
    """
    if word in _ANNOTATIONS or word.startswith("x-") or not (word[:1].isalpha() or word.startswith("$")):
        return None
    near = difflib.get_close_matches(word[:64].lower().replace("_", "").replace("-", ""), _BY_SPELLING, 1, _ALIKE)
    return _BY_SPELLING[near[0]] if near else None
