"""Walk a JSON schema, and refuse what the grammar library cannot keep at its keyword's path.

The library itself refuses most of what it cannot keep, but says no path, and it lets pass what is unknown in the draft
that a schema declares. So the schema is first walked here, along everything that an answer can be held to.
"""

from __future__ import annotations

import math
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Final

from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake import schema_keywords as words
from helix_jobs.intake.line_faults import Faults, cut, kind, short
from helix_jobs.intake.pattern_check import check_pattern
from helix_jobs.intake.schema_references import Path, References

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MAX_PROPERTIES: Final = 1_000
MAX_ENUM_VALUES: Final = 10_000
# Characters of one text in enum or const: each mask inside it costs a microsecond for each of them.
MAX_LITERAL_CHARS: Final = 4_096
# The sum of squares of the numbers of patterns in the objects' patternProperties: the library compares them in pairs.
MAX_PATTERN_PAIRS: Final = 2_500
# Telling multiples of N takes a state for each remainder: 10,000 of them cost 0.4 s and 5 MB.
MAX_MULTIPLE: Final = 10_000

# Schemas inside each other, references followed: the library takes some 5 KB of stack for each, and its process dies
# where the stack ends. Threads have 2 MB or more.
MAX_LEVELS: Final = 200

# Drafts in which the words beside a $ref have no effect, and those that have no prefixItems.
_REF_ALONE: Final = ("draft-03", "draft-04", "draft-05", "draft-06", "draft-07")
_NO_PREFIX_ITEMS: Final = (*_REF_ALONE, "2019-09")
# The library counts in doubles, which hold few integers of this size; but generators write these two for "no limit".
_NO_LIMITS: Final = (2**63 - 1, -(2**63))
_CONTROL: Final = frozenset(map(chr, range(32))) - frozenset("\b\t\n\f\r") | {"\x7f"}


def walk_schema(schema: dict[str, Any], field: str) -> None:
    """Check every word of the schema that an answer can be held to.

    Definitions that no ``$ref`` reaches are not looked at.

    Args:
        schema: Parsed JSON. Words that ask for nothing but that the library refuses are taken out of it.
        field: The schema's own name, which begins the path of each fault.

    Raises:
        InvalidFieldError: A word cannot be kept, or has a value that it cannot have.
        InvalidFieldsError: Several are so.
    """
    _Walk(schema, field).run()


def subschemas(schema: dict[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Yield the schemas directly in a schema, each with its path from there."""
    for word, value in schema.items():
        if word in words.SUBSCHEMAS and not isinstance(value, list):
            yield (word,), value
        elif word in words.SUBSCHEMAS | words.SUBSCHEMA_LISTS and isinstance(value, list):
            yield from (((word, index), item) for index, item in enumerate(value))
        elif word in words.SUBSCHEMA_MAPS | words.DEFINITIONS and isinstance(value, dict):
            yield from (((word, name), item) for name, item in value.items())


def shown(field: str, path: Path) -> str:
    """A path as a person would write it."""
    return field + "".join(f"[{step}]" if isinstance(step, int) else f".{short(step)}" for step in path)


class _Walk:
    """One walk over one schema."""

    def __init__(self, root: dict[str, Any], field: str) -> None:
        self._references = References(root)
        self._field = field
        self._faults = Faults()
        self._seen: set[int] = set()
        self._waiting: list[tuple[int, Path, Any]] = [(1, (), root)]
        self._pattern_pairs = 0
        self._multiples: set[Fraction] = set()
        self._own_address: Path | None = None
        self._refers: Path | None = None
        declared = root.get("$schema")
        self._draft = declared if isinstance(declared, str) else ""

    def run(self) -> None:
        """Walk until nothing waits."""
        while self._waiting:
            level, path, schema = self._waiting.pop()
            if level > MAX_LEVELS:
                self._refuse(path, f"is schema {level} inside each other", f"nest and refer in at most {MAX_LEVELS}")
                break
            if id(schema) not in self._seen:
                self._seen.add(id(schema))
                self._schema(path, schema)
                inner = self._inner(path, schema) if isinstance(schema, dict) else []
                self._waiting += [(level + 1, place, item) for place, item in reversed(inner)]
        if self._own_address and self._refers:
            remedy = "remove it: references are looked up from the schema's root, as in #/$defs/name"
            self._refuse(self._own_address, "gives a part of the schema an address of its own", remedy)
        if self._pattern_pairs > MAX_PATTERN_PAIRS:
            self._refuse((), "has too many patternProperties", "give at most 50, or additionalProperties instead")
        if self._multiples and not self._faults and _common_multiple(self._multiples) > MAX_MULTIPLE:
            reason = "holds multipleOf whose common multiple has too large a coefficient"
            self._refuse((), reason, f"give values whose common multiple has one of at most {MAX_MULTIPLE:,}")
        self._faults.settle()

    def _refuse(self, path: Path, reason: str, remedy: str) -> None:
        self._faults.add(InvalidFieldError(shown(self._field, path), reason, remedy))

    def _schema(self, path: Path, schema: object) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            self._refuse(path, f"is {kind(schema)}, no schema", 'give an object such as {"type": "string"}')
            return
        for word in [word for word, nothing in words.NEUTRAL.items() if schema.get(word) is nothing]:
            del schema[word]
        for word, value in schema.items():
            if word in words.REFUSED:
                self._refuse((*path, word), *words.REFUSED[word])
            elif word not in words.KEPT:
                self._unknown((*path, word), value)
            elif word in self._CHECKS:
                self._CHECKS[word](self, (*path, word), value, schema)
        self._combinations(path, schema)

    def _inner(self, path: Path, schema: dict[str, Any]) -> list[tuple[Path, Any]]:
        """The schemas that follow from a schema, in the order in which the library goes into them.

        The order decides how deep it goes: what it has seen before, it does not enter again.
        """
        found = [((*path, *place), item) for place, item in subschemas(schema) if place[0] not in words.DEFINITIONS]
        order = words.library_order(schema)
        found.sort(key=lambda part: order[str(part[0][len(path)])])
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            before = sum(order[str(place[len(path)])] < order["$ref"] for place, _ in found)
            with suppress(LookupError):
                found.insert(before, self._references.target(reference))
        return found

    def _unknown(self, path: Path, value: object) -> None:
        word = str(path[-1])
        if word in ("$id", "id") and len(path) > 1 and isinstance(value, str) and not value.startswith("#"):
            self._own_address = path
        elif (meant := words.misspelt(word)) is not None:
            remedy = f"did you mean {meant}? If it is a word of your own, rename it to x-{short(word)}"
            self._refuse(path, "is no word of JSON Schema", remedy)

    def _combinations(self, path: Path, schema: dict[str, Any]) -> None:
        """Check words that stand beside each other."""
        if "$ref" in schema and any(draft in self._draft for draft in _REF_ALONE):
            for word in schema.keys() & words.KEPT - {"$ref"}:
                remedy = "remove it, or put the $ref into allOf"
                self._refuse((*path, word), "stands beside $ref, where the declared draft gives it no effect", remedy)
        if "prefixItems" in schema:
            if any(draft in self._draft for draft in _NO_PREFIX_ITEMS):
                self._refuse((*path, "prefixItems"), "is unknown in the declared draft", "declare draft 2020-12")
            if "additionalItems" in schema or isinstance(schema.get("items"), list):
                remedy = "use prefixItems with items, or a list of items with additionalItems"
                self._refuse((*path, "prefixItems"), "stands beside words of older drafts", remedy)
        patterns, properties = schema.get("patternProperties"), schema.get("properties")
        if isinstance(patterns, dict):
            self._pattern_pairs += len(patterns) ** 2
            for pattern in patterns:
                self._faults.of(check_pattern, pattern, shown(self._field, (*path, "patternProperties", pattern)))
        if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
            remedy = f"give at most {MAX_PROPERTIES:,}; divide them among objects in it"
            self._refuse((*path, "properties"), f"has {len(properties):,} properties", remedy)
        least, required = schema.get("minProperties"), schema.get("required")
        if type(least) is int and least - (len(required) if isinstance(required, list) else 0) > 1:
            reason = "asks for several names of the model's choice, and a grammar cannot tell that they differ"
            self._refuse((*path, "minProperties"), reason, "name them in required, or give 1")

    def _ref(self, path: Path, value: object, _schema: object) -> None:
        if not isinstance(value, str):
            self._refuse(path, f"is {kind(value)}", 'give a string such as "#/$defs/name"')
            return
        self._refers = path
        if not value.startswith("#"):
            reason = "leads out of the schema"
            self._refuse(path, reason, "copy what it names into $defs, and write it as #/$defs/name")
            return
        try:
            self._references.target(value)
        except LookupError:
            self._refuse(path, f"names {short(value)}, which is not in the schema", "give its path, as in #/$defs/name")

    def _schema_map(self, path: Path, value: object, _schema: object) -> None:
        if not isinstance(value, dict):
            self._refuse(path, f"is {kind(value)}", "give an object of schemas")

    def _schema_list(self, path: Path, value: object, _schema: object) -> None:
        if not isinstance(value, list) or not value:
            self._refuse(path, "is no list of schemas", "give a list with at least one schema")

    def _type(self, path: Path, value: object, _schema: object) -> None:
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) and name in words.TYPES for name in names):
            self._refuse(path, "is no type of JSON", f"give one of {', '.join(words.TYPES)}, or a list of them")

    def _required(self, path: Path, value: object, _schema: object) -> None:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            self._refuse(path, "is no list of names", 'give a list beside properties, such as ["name"]')

    def _enum(self, path: Path, value: object, _schema: object) -> None:
        if not isinstance(value, list) or not value:
            self._refuse(path, "is no list of values", "give a list with at least one value")
        elif len(value) > MAX_ENUM_VALUES:
            self._refuse(path, f"has {len(value):,} values", f"give at most {MAX_ENUM_VALUES:,}")
        else:
            for index, item in enumerate(value):
                self._literal((*path, index), item)

    def _const(self, path: Path, value: object, _schema: object) -> None:
        self._literal(path, value)

    def _literal(self, path: Path, value: object) -> None:
        """A value that an answer must have, wherever it stands in ``enum`` or ``const``."""
        waiting: list[tuple[Path, Any]] = [(path, value)]
        while waiting:
            place, item = waiting.pop()
            if isinstance(item, str) and not _CONTROL.isdisjoint(item):
                self._refuse(place, "holds a control character, which answers in JSON never have", "remove it")
            elif isinstance(item, str) and len(item) > MAX_LITERAL_CHARS:
                self._refuse(place, f"has {len(item):,} characters", f"give at most {MAX_LITERAL_CHARS:,}")
            elif isinstance(item, int | float) and not isinstance(item, bool):
                self._bound(place, item)
            elif isinstance(item, dict):
                waiting += [((*place, name), inner) for name, inner in item.items()]
            elif isinstance(item, list):
                waiting += [((*place, index), inner) for index, inner in enumerate(item)]

    def _pattern(self, path: Path, value: object, _schema: object) -> None:
        if not isinstance(value, str):
            self._refuse(path, f"is {kind(value)}", "give a regular expression as a string")
        else:
            self._faults.of(check_pattern, value, shown(self._field, path))

    def _format(self, path: Path, value: object, schema: dict[str, Any]) -> None:
        if not isinstance(value, str):
            self._refuse(path, f"is {kind(value)}", "give a string")
            return
        types = schema.get("type", "string")
        # A format speaks of strings only: beside other types, it asks for nothing.
        if value not in words.FORMATS and ("string" in types if isinstance(types, str | list) else True):
            remedy = f"give one of {', '.join(words.FORMATS)}, or a pattern instead"
            self._refuse(path, f"is {short(value)}, which a grammar does not know", remedy)

    def _multiple(self, path: Path, value: object, _schema: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            self._refuse(path, "is no number above 0", "give a number such as 0.01")
            return
        # repr is the shortest text for a float, which is the one in the file.
        multiple = Fraction(repr(value))
        if _coefficient(multiple) > MAX_MULTIPLE:
            reason = f"is {cut(repr(value), 30)}, which has too large a coefficient"
            self._refuse(path, reason, f"give one of at most {MAX_MULTIPLE:,} times a power of ten")
        else:
            self._multiples.add(multiple)

    def _count(self, path: Path, value: object, _schema: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or value > _NO_LIMITS[0]:
            self._refuse(path, f"is {cut(repr(value), 30)}, no count", "give an integer of 0 or more")

    def _bound(self, path: Path, value: object, _schema: object = None) -> None:
        """A number that is compared with the answer's."""
        if isinstance(value, bool) and path[-1] in ("exclusiveMinimum", "exclusiveMaximum"):
            return  # draft 4's form
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(path, f"is {kind(value)}", "give a number")
        elif isinstance(value, int) and value not in _NO_LIMITS and not _is_exact(value):
            remedy = "give a smaller integer, or a pattern for a string of digits"
            self._refuse(path, "is an integer that a double cannot hold", remedy)

    _CHECKS: ClassVar[Mapping[str, Callable[[_Walk, Path, Any, dict[str, Any]], None]]] = {
        "$ref": _ref,
        "type": _type,
        "required": _required,
        "enum": _enum,
        "const": _const,
        "pattern": _pattern,
        "format": _format,
        "multipleOf": _multiple,
        **dict.fromkeys(words.COUNTS, _count),
        **dict.fromkeys(words.BOUNDS, _bound),
        **dict.fromkeys(words.SUBSCHEMA_MAPS, _schema_map),
        **dict.fromkeys(words.SUBSCHEMA_LISTS, _schema_list),
    }


def _is_exact(value: int) -> bool:
    try:
        return int(float(value)) == value
    except OverflowError:
        return False


def _coefficient(value: Fraction) -> int:
    """The integer that remains of a decimal number without its power of ten."""
    while value.denominator > 1:
        value *= 10
    coefficient = int(value)
    while coefficient % 10 == 0:
        coefficient //= 10
    return coefficient


def _common_multiple(values: set[Fraction]) -> int:
    """The coefficient of the least common multiple."""
    scale = math.lcm(*(value.denominator for value in values))
    return _coefficient(Fraction(math.lcm(*(int(value * scale) for value in values)), scale))
