"""Convert a line's sampling fields, also in other programs' spellings, to the form that ``jobs.request`` stores."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.bounds import MAX_NEW_TOKENS
from helix_jobs.engine.sampling_params import SAMPLING_FIELDS, SamplingParams
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.known_fields import SYNONYMS
from helix_jobs.intake.line_faults import Faults
from helix_jobs.intake.logprob_fields import LOGPROB_FIELDS, read_logprobs
from helix_jobs.intake.numbers import number, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

_WHOLE: Final = frozenset({"max_tokens", "min_tokens", "top_k", "seed", "prompt_logprobs", "n"})
_NUMBERS: Final = _WHOLE | {
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
}
# Most lines have none of these, and one look tells.
_SPELT_OTHERWISE: Final = LOGPROB_FIELDS | SYNONYMS.keys()
# The types of values that cannot stand in a cache's key.
_CONTAINERS: Final = frozenset({list, dict})
# Fields for which -1 means as many as possible -> that number.
_UNLIMITED: Final = {"max_tokens": MAX_NEW_TOKENS, "top_k": 0}


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
            InvalidFieldError: A field is wrong, or several answers are asked for that would all be the same.
            InvalidFieldsError: Several are wrong.
        """
        stored = self._read(values, prefix)
        if stored.get("n", 1) > 1 or values.get("best_of") is not None:
            _check_choices(stored, values, prefix)
        return stored

    def _read(self, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        given = {name: value for name, value in values.items() if name in SAMPLING_FIELDS and value is not None}
        if values.keys().isdisjoint(_SPELT_OTHERWISE):
            if not given:
                return dict(self._stored_defaults)
            try:
                return self._checked(given)
            except InvalidFieldError:  # found again below, by its own name
                pass
        names: dict[str, str] = {}
        if not values.keys().isdisjoint(SYNONYMS.keys()):
            names = {name: other for other, name in SYNONYMS.items() if values.get(other) is not None}
            given |= {name: _one_of(values, other, name, prefix) for name, other in names.items()}
        faults = Faults()
        if not LOGPROB_FIELDS.isdisjoint(values.keys()):
            given.pop("logprobs", None)
            if (logprobs := faults.of(read_logprobs, values, prefix)) is not None:
                given["logprobs"] = logprobs
        if not given and not faults:
            return dict(self._stored_defaults)
        try:
            stored = self._checked(given)
        except InvalidFieldError as together:
            self._find_faults(given, names, faults, prefix)
            faults.settle()
            raise _named(together, names, prefix) from together
        faults.settle()
        return stored

    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if not _CONTAINERS.isdisjoint(map(type, given.values())):
            return _check(given, self._defaults)
        # The cache key includes the types: 1, 1.0 and True are equal in Python, but not in JSON.
        return dict(self._check_once(tuple([(name, type(value), value) for name, value in given.items()])))

    def _find_faults(self, given: Mapping[str, Any], names: Mapping[str, str], faults: Faults, prefix: str) -> None:
        """Note the faults of each field by itself."""
        scoring = {name: given[name] for name in ("echo", "logprobs") if name in given}
        for name, value in given.items():
            try:
                # Beside these two, 0 new tokens are right.
                _check({**(scoring if name == "max_tokens" else {}), name: value}, self._lenient)
            except InvalidFieldError as error:
                if name != "max_tokens" or error.field == name:
                    faults.add(_named(error, names, prefix))

    def _check_scalars(self, given: tuple[tuple[str, type, Any], ...]) -> dict[str, Any]:
        return _check({name: value for name, _, value in given}, self._defaults)


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
    return number(value) if name in _NUMBERS else value


def _check_choices(stored: Mapping[str, Any], values: Mapping[str, Any], prefix: str) -> None:
    """Refuse to make several answers that are all the same, and to choose the best of several."""
    num_choices = stored.get("n", 1)
    best_of = whole(values.get("best_of"))
    if best_of is not None and (isinstance(best_of, bool) or best_of not in (1, num_choices)):
        raise InvalidFieldError(f"{prefix}best_of", "differs from n", "remove it; every answer is kept")
    if num_choices > 1 and ("temperature" not in stored or stored.get("max_tokens") == 0):
        field = "n" if values.get("num_return_sequences") is None else "num_return_sequences"
        why = "at temperature 0" if "temperature" not in stored else "without new tokens"
        reason = f"asks for {num_choices} answers, which are all the same {why}"
        remedy = "give a temperature (OpenAI's default is 1)" if "temperature" not in stored else "give max_tokens"
        raise InvalidFieldError(f"{prefix}{field}", reason, f"{remedy}, or n 1")


def _one_of(values: Mapping[str, Any], other: str, name: str, prefix: str) -> object:
    """The value of a field that has two names."""
    theirs, ours = whole(values[other]), whole(values.get(name))
    if ours is not None and (ours != theirs or type(ours) is not type(theirs)):
        raise InvalidFieldError(f"{prefix}{name}", f"differs from {other}", "give one of the two")
    return theirs


def _named(error: InvalidFieldError, names: Mapping[str, str], prefix: str) -> InvalidFieldError:
    """The error under the name that the line uses for the field."""
    return InvalidFieldError(prefix + names.get(error.field, error.field), error.reason, error.remedy)
