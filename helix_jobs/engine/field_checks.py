"""Checks of single sampling fields: each returns the checked value, or raises the error that names the field."""

from __future__ import annotations

import re
from typing import Any, Final

from helix_jobs.errors import InvalidFieldError

_KINDS: Final = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    tuple: "a list",
    dict: "an object",
}
# A token id as the name of a field in an object, where JSON has only strings.
_ID_TEXT: Final = re.compile(r"0|[1-9]\d{0,18}", re.ASCII)


class InvalidSamplingParamsError(InvalidFieldError):
    """One sampling field is wrong."""


def kind(value: object) -> str:
    """Name a value's JSON type."""
    return _KINDS.get(type(value), type(value).__name__)


def check_integer(name: str, value: object, low: int, high: int) -> None:
    """Refuse what is no integer from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidSamplingParamsError(name, f"is {kind(value)}", f"give an integer from {low} to {high}")
    if not low <= value <= high:
        raise InvalidSamplingParamsError(name, f"{value} is out of range", f"give an integer from {low} to {high}")


def check_number(name: str, value: object, low: float, high: float, *, low_open: bool = False) -> None:
    """Refuse what is no number from ``low`` to ``high``; ``low_open`` refuses ``low`` itself."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        reason = f"is {kind(value)}"
    # NaN and infinities fail the comparison. math.isfinite would raise on an integer too large for a float.
    elif not low <= value <= high or (low_open and value == low):
        reason = f"{value} is out of range"
    else:
        return
    # Formatted only on failure: each line comes here five times, and formatting costs more than the check.
    remedy = f"give a number {'above' if low_open else 'from'} {low:g} {'up ' if low_open else ''}to {high:g}"
    raise InvalidSamplingParamsError(name, reason, remedy)


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise InvalidSamplingParamsError(name, f"is {kind(value)}", "give true or false")


def checked_texts(name: str, value: object, most: int, most_chars: int) -> tuple[str, ...]:
    """One string or a list of strings, as a tuple; each has 1 to ``most_chars`` characters."""
    if value == ():
        return ()
    remedy = f"give a string, or at most {most} strings of 1 to {most_chars} characters"
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        raise InvalidSamplingParamsError(name, f"is {kind(value)}", remedy)
    if len(texts) > most:
        raise InvalidSamplingParamsError(name, f"has {len(texts)} strings", remedy)
    for text in texts:
        if not isinstance(text, str):
            raise InvalidSamplingParamsError(name, f"holds {kind(text)}", remedy)
        if not 1 <= len(text) <= most_chars:
            raise InvalidSamplingParamsError(name, f"holds a string of {len(text)} characters", remedy)
    return tuple(texts)


def checked_token_ids(name: str, value: object, most: int) -> tuple[int, ...]:
    """A list of token ids, as a tuple. Whether the model has them, only its worker knows."""
    if value == ():
        return ()
    remedy = f"give a list of at most {most} token ids"
    if not isinstance(value, list | tuple):
        raise InvalidSamplingParamsError(name, f"is {kind(value)}", remedy)
    if len(value) > most:
        raise InvalidSamplingParamsError(name, f"has {len(value)} ids", remedy)
    for token_id in value:
        if not _is_id(token_id):
            raise InvalidSamplingParamsError(name, f"holds {kind(token_id)} that is no token id", remedy)
    return tuple(value)


def checked_biases(name: str, value: object, most: int, limit: float) -> tuple[tuple[int, float], ...]:
    """Token ids with a number from ``-limit`` to ``limit``: OpenAI's object or a list of pairs, as sorted pairs."""
    if value == ():
        return ()
    remedy = f'give at most {most} token ids with a number from {-limit:g} to {limit:g}, such as {{"11": {limit:g}}}'
    if not isinstance(value, dict | list | tuple):
        raise InvalidSamplingParamsError(name, f"is {kind(value)}", remedy)
    if len(value) > most:
        raise InvalidSamplingParamsError(name, f"has {len(value)} entries", remedy)
    found: dict[int, float] = {}
    for entry in value.items() if isinstance(value, dict) else value:
        if not isinstance(entry, list | tuple) or len(entry) != 2:  # noqa: PLR2004  (a pair)
            raise InvalidSamplingParamsError(name, f"holds {kind(entry)}, no pair of token id and number", remedy)
        token_id = _id_of(entry[0]) if isinstance(value, dict) else entry[0]
        reason = _bias_fault(token_id, entry[1], limit)
        if reason:
            raise InvalidSamplingParamsError(name, reason, remedy)
        if token_id in found:
            raise InvalidSamplingParamsError(name, f"names token {token_id} twice", "keep one of them")
        found[token_id] = float(entry[1])
    return tuple(sorted(found.items()))


def _bias_fault(token_id: object, bias: object, limit: float) -> str:
    if not _is_id(token_id):
        return f"names {kind(token_id)} that is no token id"
    if isinstance(bias, bool) or not isinstance(bias, int | float):
        return f"gives token {token_id} {kind(bias)}"
    return "" if -limit <= bias <= limit else f"gives token {token_id} {bias}, which is out of range"


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _id_of(key: object) -> Any:  # noqa: ANN401  (checked by the caller)
    return int(key) if isinstance(key, str) and _ID_TEXT.fullmatch(key) else key
