"""SamplingParams: how one request is sampled, validated once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.bounds import MAX_NEW_TOKENS
from helix_jobs.errors import InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Below this, fp32 sampling cannot be told from greedy decoding.
MIN_TEMPERATURE: Final = 0.0001
MAX_STOP_STRINGS: Final = 16
MAX_STOP_STRING_CHARS: Final = 256
MAX_STOP_TOKEN_IDS: Final = 64


class InvalidSamplingParamsError(InvalidFieldError):
    """One sampling field is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling fields of one request.

    The processed distribution is built in this order (transformers' own): penalties over the logits, temperature,
    top-k, top-p, min-p. Repetition penalty counts prompt and output tokens, presence and frequency penalties output
    tokens only (OpenAI's definition).

    Attributes:
        max_tokens: Most new tokens, at least 1.
        temperature: 0 decodes greedily (the default); otherwise logits are divided by it. 0 or in [0.0001, 100].
        top_p: Keep the smallest set of most likely tokens with at least this mass, and any tokens exactly as likely as
            the last of them. In (0, 1]; 1 is off.
        top_k: Keep the k most likely tokens; 0 is off.
        min_p: Drop tokens less likely than min_p times the most likely one. In [0, 1]; 0 is off.
        seed: 64-bit seed of this request's random numbers. None: the caller derives one from the job's identity.
        stop: Texts that end the output; the output ends before the first of them.
        stop_token_ids: Token ids that, beside the model's end-of-sequence ids, end the output; they are not part of it.
        presence_penalty: Subtracted once from every token that occurred in the output. In [-2, 2].
        frequency_penalty: Subtracted per occurrence in the output. In [-2, 2].
        repetition_penalty: Divides positive and multiplies negative logits of seen tokens. In [0.01, 10]; 1 is off.
        ignore_eos: Ignore the model's end-of-sequence ids (``stop`` and ``stop_token_ids`` still end the output).

    Raises:
        InvalidSamplingParamsError: A field has the wrong type or is out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids(self.stop_token_ids))
        _integer("max_tokens", self.max_tokens, 1, MAX_NEW_TOKENS)
        _integer("top_k", self.top_k, 0, 2**31 - 1)
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**64 - 1)
        _number("temperature", self.temperature, 0.0, 100.0)
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise InvalidSamplingParamsError(
                "temperature", f"{self.temperature} is too small", f"give 0 (greedy) or {MIN_TEMPERATURE} to 100"
            )
        _number("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _number("repetition_penalty", self.repetition_penalty, 0.01, 10.0)
        if not isinstance(self.ignore_eos, bool):
            raise InvalidSamplingParamsError("ignore_eos", f"is {_kind(self.ignore_eos)}", "give true or false")

    @property
    def is_greedy(self) -> bool:
        """Whether the temperature is 0: take the most likely token after penalties, without random numbers."""
        return self.temperature == 0.0

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], defaults: SamplingParams | None = None) -> SamplingParams:
        """Build from parsed JSON; missing fields and nulls take ``defaults``.

        Raises:
            InvalidSamplingParamsError: An unknown field, a wrong type or a value out of range.
        """
        for name in values:
            if name not in SAMPLING_FIELDS:
                raise InvalidSamplingParamsError(
                    name, "is not a sampling field", f"use one of {', '.join(sorted(SAMPLING_FIELDS))}"
                )
        base = {name: getattr(defaults, name) for name in SAMPLING_FIELDS} if defaults is not None else {}
        return cls(**{**base, **{name: value for name, value in values.items() if value is not None}})

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping of the fields that differ from the defaults; ``from_mapping`` reads it back."""
        given: dict[str, Any] = {}
        # Not dataclasses.asdict: its deep copy costs more than all other work on a line of input.
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if value != default:
                given[name] = list(value) if isinstance(value, tuple) else value
        return given


SAMPLING_FIELDS: Final = frozenset(field.name for field in fields(SamplingParams))
_KINDS: Final = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}
_DEFAULTS: Final = {field.name: field.default for field in fields(SamplingParams)}


def _kind(value: object) -> str:
    """Name a value's JSON type."""
    return _KINDS.get(type(value), type(value).__name__)


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidSamplingParamsError(name, f"is {_kind(value)}", f"give an integer from {low} to {high}")
    if not low <= value <= high:
        raise InvalidSamplingParamsError(name, f"{value} is out of range", f"give an integer from {low} to {high}")


def _number(name: str, value: object, low: float, high: float, *, low_open: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        reason = f"is {_kind(value)}"
    # NaN and infinities fail the comparison. math.isfinite would raise on an integer too large for a float.
    elif not low <= value <= high or (low_open and value == low):
        reason = f"{value} is out of range"
    else:
        return
    # Formatted only on failure: each line comes here five times, and formatting costs more than the check.
    remedy = f"give a number {'above' if low_open else 'from'} {low:g} {'up ' if low_open else ''}to {high:g}"
    raise InvalidSamplingParamsError(name, reason, remedy)


def _stop_strings(value: object) -> tuple[str, ...]:
    if value == ():
        return ()
    remedy = f"give a string, or at most {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_STRING_CHARS} characters"
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        raise InvalidSamplingParamsError("stop", f"is {_kind(value)}", remedy)
    if len(texts) > MAX_STOP_STRINGS:
        raise InvalidSamplingParamsError("stop", f"has {len(texts)} strings", remedy)
    for text in texts:
        if not isinstance(text, str):
            raise InvalidSamplingParamsError("stop", f"holds {_kind(text)}", remedy)
        if not 1 <= len(text) <= MAX_STOP_STRING_CHARS:
            raise InvalidSamplingParamsError("stop", f"holds a string of {len(text)} characters", remedy)
    return tuple(texts)


def _token_ids(value: object) -> tuple[int, ...]:
    if value == ():
        return ()
    remedy = f"give a list of at most {MAX_STOP_TOKEN_IDS} token ids"
    if not isinstance(value, list | tuple):
        raise InvalidSamplingParamsError("stop_token_ids", f"is {_kind(value)}", remedy)
    if len(value) > MAX_STOP_TOKEN_IDS:
        raise InvalidSamplingParamsError("stop_token_ids", f"has {len(value)} ids", remedy)
    for token_id in value:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise InvalidSamplingParamsError("stop_token_ids", f"holds {_kind(token_id)} that is no token id", remedy)
    return tuple(value)
