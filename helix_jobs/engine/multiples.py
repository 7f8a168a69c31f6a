"""Multiples of a fraction in all of their spellings. Pure functions, no torch.

The grammar library writes a multiple of 0.25 with two decimals or none, and one of 2.5 with one decimal. Beside some
bounds it also wants no zeros at a fraction's end, and then it has no spelling for 0.5 at all.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Final

_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions")
_SINGLE: Final = ("items", "additionalItems", "additionalProperties")


def with_all_spellings(schema: Any) -> Any:  # noqa: ANN401  (any JSON value may be a schema)
    """A schema that asks for the same values, in which a multiple may have fewer decimals than its fraction.

    A multiple of 0.25 becomes one of 0.25 (two decimals or none) or of 0.5 (one).

    Args:
        schema: A JSON schema that has been checked; it stays as it is.
    """
    if not isinstance(schema, dict):
        return schema
    made = dict(schema)
    for word in _SINGLE:
        if isinstance(made.get(word), dict):
            made[word] = with_all_spellings(made[word])
    for word in (*_LISTS, "items"):
        if isinstance(made.get(word), list):
            made[word] = [with_all_spellings(option) for option in made[word]]
    for word in _MAPS:
        if isinstance(made.get(word), dict):
            made[word] = {name: with_all_spellings(inner) for name, inner in made[word].items()}
    multiples = _by_decimals(made.get("multipleOf"))
    if len(multiples) > 1:
        del made["multipleOf"]
        options = [{"multipleOf": multiple} for multiple in multiples]
        if "anyOf" in made:
            made["allOf"] = [*made.get("allOf", ()), {"anyOf": options}]
        else:
            made["anyOf"] = options
    return made


def _by_decimals(value: object) -> list[float]:
    """The multiples of ``value`` with all of its decimals, with one less, and so on down to none.

    Where every number of so many decimals is a multiple, as with 0.01, the library writes them all by itself.
    """
    if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
        return []
    multiple = Fraction(repr(value))
    decimals = 0
    while (multiple * 10**decimals).denominator > 1:
        decimals += 1
    found = [multiple]
    for count in range(decimals - 1, -1, -1):
        step = _common_multiple(multiple, Fraction(1, 10**count))
        if step not in (Fraction(1, 10**count), found[-1]):
            found.append(step)
    return [float(step) for step in found]


def _common_multiple(one: Fraction, other: Fraction) -> Fraction:
    """The smallest number above 0 that is a multiple of both."""
    return Fraction(
        math.lcm(one.numerator * other.denominator, other.numerator * one.denominator),
        one.denominator * other.denominator,
    )
