"""AcceptanceRule: when a job's answer counts, validated once."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.bounds import MAX_NEW_TOKENS
from helix_jobs.errors import InvalidFieldError, InvalidFieldsError
from helix_jobs.json_depth import is_deeper

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_TRIES: Final = 3
MOST_TRIES: Final = 100
MAX_REGEX_CHARS: Final = 4096
MAX_SCHEMA_CHARS: Final = 65_536
MAX_SCHEMA_DEPTH: Final = 64
# Beyond any answer of MAX_NEW_TOKENS tokens.
_MOST_CHARS: Final = 100_000_000
_FIELD: Final = "accept"
_WHOLE: Final[Mapping[str, tuple[int, int]]] = {
    "min_chars": (1, _MOST_CHARS),
    "max_chars": (0, _MOST_CHARS),
    "min_tokens": (1, MAX_NEW_TOKENS),
    "max_tokens": (0, MAX_NEW_TOKENS),
    "max_tries": (1, MOST_TRIES),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceRule:
    """What an answer must be to count, and how many answers a job may give. An answer must meet every condition.

    The answer is the text that ``output_text`` has, without the model's thinking. White space around it does not count.

    Attributes:
        schema: The answer is JSON text that is valid against this JSON Schema; True: against the request's own schema,
            which its ``response_format`` or ``structured_outputs`` states.
        regex: It matches from its first to its last character, in the syntax of JSON Schema's ``pattern`` without
            look-around and back references.
        min_chars: The answer has at least as many characters.
        max_chars: It has at most as many.
        min_tokens: It has at least as many tokens, the model's thinking not counted.
        max_tokens: It has at most as many.
        not_cut: Neither ``max_tokens`` nor the context cut it off.
        not_repeating: It does not end by repeating itself (``repetition``).
        max_tries: Most answers that the job gives, the first included.

    Raises:
        InvalidFieldError: A field has the wrong type or is out of range, or there is no condition.
        InvalidFieldsError: Several fields are wrong.
    """

    schema: Mapping[str, Any] | bool | None = None
    regex: str | None = None
    min_chars: int | None = None
    max_chars: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    not_cut: bool = False
    not_repeating: bool = False
    max_tries: int = DEFAULT_TRIES

    def __post_init__(self) -> None:
        faults = [fault for name in _NAMES if (fault := _fault(name, getattr(self, name))) is not None]
        if not faults:
            faults = [fault for unit in ("chars", "tokens") if (fault := self._crossed(unit)) is not None]
        if not faults and all(getattr(self, name) == default for name, default in _CONDITIONS.items()):
            remedy = f"give one or more of {', '.join(_CONDITIONS)}"
            faults = [InvalidFieldError(_FIELD, "states no condition", remedy)]
        if len(faults) > 1:
            raise InvalidFieldsError(tuple(faults))
        if faults:
            raise faults[0]

    @property
    def has_pattern(self) -> bool:
        """Whether it holds a schema or a regular expression: a stranger's pattern, which may take for ever."""
        return self.schema is not None or self.regex is not None

    @classmethod
    def from_mapping(cls, values: object, defaults: AcceptanceRule | None = None) -> AcceptanceRule:
        """Build from parsed JSON; missing fields and nulls take ``defaults``.

        Raises:
            InvalidFieldError: As the class itself, or ``values`` is no object or holds an unknown field.
            InvalidFieldsError: Several fields are wrong.
        """
        if not isinstance(values, dict):
            raise InvalidFieldError(_FIELD, "is no object", 'give an object such as {"not_cut": true}')
        if unknown := [name for name in values if name not in _NAMES]:
            remedy = f"use {', '.join(_NAMES)}"
            faults = [InvalidFieldError(f"{_FIELD}.{_short(name)}", "is no rule", remedy) for name in unknown]
            raise faults[0] if len(faults) == 1 else InvalidFieldsError(tuple(faults))
        base = {} if defaults is None else {name: getattr(defaults, name) for name in _NAMES}
        return cls(**{**base, **{name: value for name, value in values.items() if value is not None}})

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping of the fields that differ from the defaults; ``from_mapping`` reads it back."""
        return {name: getattr(self, name) for name, default in _DEFAULTS.items() if getattr(self, name) != default}

    def _crossed(self, unit: str) -> InvalidFieldError | None:
        least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
        if least is None or most is None or least <= most:
            return None
        return InvalidFieldError(
            f"{_FIELD}.min_{unit}", f"{least} is more than max_{unit}, {most}", "lower it, or raise the other"
        )


_DEFAULTS: Final = {field.name: field.default for field in fields(AcceptanceRule)}
_NAMES: Final = tuple(_DEFAULTS)
_CONDITIONS: Final = {name: default for name, default in _DEFAULTS.items() if name != "max_tries"}


def _fault(name: str, value: object) -> InvalidFieldError | None:
    field = f"{_FIELD}.{name}"
    if name in _WHOLE:
        return None if value is None else _whole_fault(field, value, *_WHOLE[name])
    if name == "schema":
        return None if value is None else _schema_fault(field, value)
    if name == "regex":
        return None if value is None else _regex_fault(field, value)
    return None if isinstance(value, bool) else InvalidFieldError(field, "is no boolean", "give true or false")


def _whole_fault(field: str, value: object, low: int, high: int) -> InvalidFieldError | None:
    remedy = f"give an integer from {low:,} to {high:,}"
    if isinstance(value, bool) or not isinstance(value, int):
        return InvalidFieldError(field, "is no integer", remedy)
    return None if low <= value <= high else InvalidFieldError(field, f"{value} is out of range", remedy)


def _regex_fault(field: str, value: object) -> InvalidFieldError | None:
    remedy = f"give a regular expression of 1 to {MAX_REGEX_CHARS:,} characters"
    if not isinstance(value, str):
        return InvalidFieldError(field, "is no string", remedy)
    if not 1 <= len(value) <= MAX_REGEX_CHARS:
        return InvalidFieldError(field, f"has {len(value):,} characters", remedy)
    return None


def _schema_fault(field: str, value: object) -> InvalidFieldError | None:
    remedy = "give a JSON Schema as an object, or true for the request's own schema"
    if value is True:
        return None
    if not isinstance(value, dict):
        return InvalidFieldError(field, "is neither an object nor true", remedy)
    if is_deeper(value, MAX_SCHEMA_DEPTH):
        return InvalidFieldError(field, "is nested too deeply", f"give at most {MAX_SCHEMA_DEPTH} levels")
    try:
        size = len(json.dumps(value))
    except (TypeError, ValueError):
        return InvalidFieldError(field, "is no JSON", remedy)
    if size > MAX_SCHEMA_CHARS:
        return InvalidFieldError(field, f"has {size:,} characters as JSON", f"give at most {MAX_SCHEMA_CHARS:,}")
    return None


def _short(name: str) -> str:
    cut = name if len(name) <= 40 else name[:37] + "..."  # noqa: PLR2004  (room in a table)
    return cut if cut.isprintable() and cut else ascii(cut)
