"""Convert a line's sampling fields, also in other programs' spellings, to the form that ``jobs.request`` stores."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.bounds import MAX_NEW_TOKENS
from helix_jobs.engine.sampling_params import SAMPLING_FIELDS, SamplingParams
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.known_fields import SYNONYMS
from helix_jobs.intake.line_faults import Faults

if TYPE_CHECKING:
    from collections.abc import Mapping

_WHOLE: Final = frozenset({"max_tokens", "min_tokens", "top_k", "seed"})
_NUMBERS: Final = _WHOLE | {
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
}
_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d{0,19})(?:\.\d{1,20})?(?:[eE][+-]?\d{1,2})?", re.ASCII)
# Fields for which -1 means as many as possible -> that number.
_UNLIMITED: Final = {"max_tokens": MAX_NEW_TOKENS, "top_k": 0}
# Up to this number, every whole number has its own float.
_EXACT_FLOAT: Final = 2**53


class SamplingReader:
    """Reads the sampling fields of lines that share the same defaults.

    Args:
        defaults: The values for missing fields and nulls.
    """

    def __init__(self, defaults: SamplingParams) -> None:
        self._defaults = defaults
        self._stored_defaults = defaults.to_dict()
        # To check fields one by one that are also checked together.
        self._lenient = replace(defaults, min_tokens=0, max_tokens=MAX_NEW_TOKENS)
        # Most lines of a file have the same fields; checking these once makes reading a file faster by a fifth.
        self._check_once = lru_cache(maxsize=256)(self._check_scalars)

    def read(self, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """Return the stored form of the sampling fields among ``values``.

        A whole number may be written as a float (``64.0``) and any number as a text (``"0.7"``), as tables and
        converters do. ``max_tokens`` -1 means as many as possible, ``top_k`` -1 means off.

        Raises:
            InvalidFieldError: A field is wrong.
            InvalidFieldsError: Several are.
        """
        given = {name: value for name, value in values.items() if name in SAMPLING_FIELDS and value is not None}
        names: dict[str, str] = {}
        if not values.keys().isdisjoint(SYNONYMS.keys()):
            names = {name: other for other, name in SYNONYMS.items() if values.get(other) is not None}
            given |= {name: _one_of(values, other, name, prefix) for name, other in names.items()}
        if not given:
            return dict(self._stored_defaults)
        try:
            if any(isinstance(value, list | dict) for value in given.values()):
                return _check(given, self._defaults)
            # The cache key includes the types: 1, 1.0 and True are equal in Python, but not in JSON.
            return dict(self._check_once(tuple([(name, type(value), value) for name, value in given.items()])))
        except InvalidFieldError as together:
            faults = Faults()
            for name, value in given.items():
                try:
                    _check({name: value}, self._lenient)
                except InvalidFieldError as error:
                    faults.add(_named(error, names, prefix))
            faults.settle()
            raise _named(together, names, prefix) from together

    def _check_scalars(self, given: tuple[tuple[str, type, Any], ...]) -> dict[str, Any]:
        return _check({name: value for name, _, value in given}, self._defaults)


def whole(value: object) -> object:
    """Convert a whole number written as a float or a text to an integer; return any other value unchanged."""
    value = _number(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT_FLOAT:
        return int(value)
    return value


def _check(given: Mapping[str, Any], defaults: SamplingParams) -> dict[str, Any]:
    plain = {name: _plain(name, value) for name, value in given.items()}
    return SamplingParams.from_mapping(plain, defaults).to_dict()


def _plain(name: str, value: object) -> object:
    if name in _WHOLE:
        value = whole(value)
        return _UNLIMITED.get(name, value) if type(value) is int and value == -1 else value
    if name in ("stop_token_ids", "allowed_token_ids") and isinstance(value, list):
        return [whole(token_id) for token_id in value]
    if name == "logit_bias" and isinstance(value, list):
        return [[whole(entry[0]), *entry[1:]] if isinstance(entry, list) and entry else entry for entry in value]
    return _number(value) if name in _NUMBERS else value


def _number(value: object) -> object:
    return json.loads(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _one_of(values: Mapping[str, Any], other: str, name: str, prefix: str) -> object:
    """The value of a field that has two names."""
    theirs, ours = whole(values[other]), whole(values.get(name))
    if ours is not None and (ours != theirs or type(ours) is not type(theirs)):
        raise InvalidFieldError(f"{prefix}{name}", f"differs from {other}", "give one of the two")
    return theirs


def _named(error: InvalidFieldError, names: Mapping[str, str], prefix: str) -> InvalidFieldError:
    """The error under the name that the line uses for the field."""
    return InvalidFieldError(prefix + names.get(error.field, error.field), error.reason, error.remedy)
