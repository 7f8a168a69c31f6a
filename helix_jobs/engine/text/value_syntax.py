"""ValueSyntax: how a model writes the values of a call's arguments where it does not write JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueSyntax:
    """A syntax of values. Numbers are JSON's.

    Attributes:
        opens: Text before the arguments.
        closes: Text behind them.
        assigns: Text between an argument's name and its value.
        separator: Text between two arguments, items or members.
        object_key: Texts around a name inside an object.
        colon: Text between such a name and its value.
        quote: What stands around a text; empty where texts are Python's.
        booleans: True and false.
        nulls: What a missing value may be.
        is_sorted: Names come in alphabetical order, small and capital letters alike, as jinja2's ``dictsort`` has them.
    """

    opens: str
    closes: str
    assigns: str
    separator: str
    object_key: tuple[str, str]
    colon: str
    quote: str
    booleans: tuple[str, str]
    nulls: tuple[str, ...]
    is_sorted: bool = False


# Source: the chat template of Gemma 4.
GEMMA: Final = ValueSyntax(
    opens="{",
    closes="}",
    assigns=":",
    separator=",",
    object_key=("", ""),
    colon=":",
    quote='<|"|>',
    booleans=("true", "false"),
    # The template writes a missing value as Python does.
    nulls=("null", "None"),
    is_sorted=True,
)
# Source: the chat template of LFM2.5, which writes arguments as Python does.
PYTHON: Final = ValueSyntax(
    opens="(",
    closes=")",
    assigns="=",
    separator=", ",
    object_key=("'", "'"),
    colon=": ",
    quote="",
    booleans=("True", "False"),
    nulls=("None",),
)
