"""Constraint: the form that an answer must have. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from helix_jobs.errors import InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]
Whitespace = Literal["compact", "model"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)
WHITESPACES: Final[tuple[str, ...]] = get_args(Whitespace)


class InvalidConstraintError(InvalidFieldError):
    """A constraint is wrong: its kind, its text, or what the text says."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form that an answer must have, as the request says it.

    Only the types are checked here. Whether the text can be kept is checked where the grammar library is at hand.

    Attributes:
        kind: What ``value`` is.
        value: A JSON schema as JSON text, a regular expression, a JSON list of choices, or a Lark grammar. Empty for
            ``json_object``, which is any JSON object.
        whitespace: White space between the parts of JSON: ``compact`` allows none, ``model`` lets the model choose.

    Trade-off: ``compact`` saves the tokens of white space and keeps a model from writing blanks without end; models
    that learned to write JSON with blanks are held to a form that is less usual to them.

    Raises:
        InvalidConstraintError: An attribute has a wrong type or an unknown value.
    """

    kind: Kind
    value: str = ""
    whitespace: Whitespace = "compact"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidConstraintError(
                "constraint.kind", f"{self.kind!r:.40} is unknown", f"use one of {', '.join(KINDS)}"
            )
        if not isinstance(self.value, str):
            raise InvalidConstraintError("constraint.value", "is no text", "give a string")
        if self.whitespace not in WHITESPACES:
            raise InvalidConstraintError(
                "constraint.whitespace", f"{self.whitespace!r:.40} is unknown", f"use one of {', '.join(WHITESPACES)}"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Constraint:
        """Read what ``to_dict`` wrote.

        Raises:
            InvalidConstraintError: An unknown or missing field, a wrong type or an unknown value.
        """
        for name in values:
            if name not in ("kind", "value", "whitespace"):
                raise InvalidConstraintError(f"constraint.{name!s:.40}", "is unknown", "use kind, value, whitespace")
        if "kind" not in values:
            raise InvalidConstraintError("constraint.kind", "is missing", f"use one of {', '.join(KINDS)}")
        return cls(**values)

    def to_dict(self) -> dict[str, str]:
        """A JSON-ready mapping; ``from_mapping`` reads it back. The default white space is left out."""
        values = {"kind": self.kind, "value": self.value}
        return values if self.whitespace == "compact" else {**values, "whitespace": self.whitespace}
