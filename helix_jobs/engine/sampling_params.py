"""SamplingParams: how one request is sampled, validated once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.bounds import MAX_NEW_TOKENS
from helix_jobs.engine.field_checks import (
    InvalidSamplingParamsError,
    check_flag,
    check_integer,
    check_number,
    checked_biases,
    checked_texts,
    checked_token_ids,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

# Below this, fp32 sampling cannot be told from greedy decoding.
MIN_TEMPERATURE: Final = 0.0001
MAX_STOP_STRINGS: Final = 16
MAX_STOP_STRING_CHARS: Final = 256
MAX_STOP_TOKEN_IDS: Final = 64
MAX_BAD_WORDS: Final = 256
MAX_BAD_WORD_CHARS: Final = 256
MAX_ALLOWED_TOKEN_IDS: Final = 16_384
# OpenAI takes 300; more of them cost nothing here.
MAX_LOGIT_BIASES: Final = 1024
# OpenAI's range.
MAX_LOGIT_BIAS: Final = 100.0
MAX_ALTERNATIVES: Final = 20
MAX_CHOICES: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling fields of one request.

    The processed distribution is built in this order (transformers' own): ``logit_bias``, repetition penalty, presence
    and frequency penalties, ``bad_words``, ``min_tokens``, ``allowed_token_ids``, temperature, top-k, top-p, min-p.
    Repetition penalty counts prompt and output tokens, presence and frequency penalties output tokens only (OpenAI's
    definition).

    Attributes:
        max_tokens: Most new tokens, at least 1; 0 with ``echo`` and ``logprobs``, where only the prompt is scored.
        min_tokens: New tokens before which the output does not end by itself: end tokens and ``stop_token_ids`` cannot
            be chosen, and ``stop`` counts only where a later token completes it (vLLM's rule). At most ``max_tokens``;
            the context may end an output earlier.
        temperature: 0 decodes greedily (the default); otherwise logits are divided by it. 0 or in [0.0001, 100].
        top_p: Keep the smallest set of most likely tokens with at least this mass, and any tokens exactly as likely as
            the last of them. In (0, 1]; 1 is off.
        top_k: Keep the k most likely tokens; 0 is off.
        min_p: Drop tokens less likely than min_p times the most likely one. In [0, 1]; 0 is off.
        seed: 64-bit seed of this request's random numbers. None: the caller derives one from the job's identity.
        stop: Texts that end the output; the output ends before the first of them.
        stop_token_ids: Token ids that, beside the model's end-of-sequence ids, end the output; they are not part of it.
        include_stop_str_in_output: The text of ``stop`` that ended the output stays at its end, or the token of
            ``stop_token_ids`` (vLLM's rule). The model's own end tokens, and special tokens in a text, never do.
        presence_penalty: Subtracted once from every token that occurred in the output. In [-2, 2].
        frequency_penalty: Subtracted per occurrence in the output. In [-2, 2].
        repetition_penalty: Divides positive and multiplies negative logits of seen tokens. In [0.01, 10]; 1 is off.
        logit_bias: Pairs of token id and what is added to its logit, in [-100, 100]. As with OpenAI and vLLM, -100 is
            added like any other number and is no ban, though hardly any token survives it.
        bad_words: Texts that the output does not contain as the tokenizer writes them, alone or after a space: the last
            token of either form cannot be chosen behind the others, which may begin in the prompt (transformers' rule).
            The same text in other tokens is not found.
        allowed_token_ids: Only these tokens can be chosen, end tokens among them only if they are listed (vLLM's rule).
            None allows all.
        ignore_eos: Ignore the model's end-of-sequence ids (``stop`` and ``stop_token_ids`` still end the output).
        logprobs: Keep each output token's log probability, and those of this many of the most likely tokens at its
            position, 0 to 20. They are the model's own, before temperature and penalties. None: keep none.
        prompt_logprobs: The same of the prompt's tokens.
        echo: The completion's text begins with the prompt. With ``logprobs`` the prompt's tokens have them, too.
        n: Choices, that is answers to the one prompt, each with random numbers of its own. 1 to 128.

    Raises:
        InvalidSamplingParamsError: A field has the wrong type or is out of range.
    """

    max_tokens: int = 256
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    n: int = 1

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "stop", checked_texts("stop", self.stop, MAX_STOP_STRINGS, MAX_STOP_STRING_CHARS))
        put(self, "stop_token_ids", checked_token_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS))
        put(self, "logit_bias", checked_biases("logit_bias", self.logit_bias, MAX_LOGIT_BIASES, MAX_LOGIT_BIAS))
        put(self, "bad_words", _bad_words(self.bad_words))
        put(self, "allowed_token_ids", _allowed_token_ids(self.allowed_token_ids))
        check_integer("max_tokens", self.max_tokens, 0 if self.echo is True else 1, MAX_NEW_TOKENS)
        if self.max_tokens == 0 and self.logprobs is None:
            raise InvalidSamplingParamsError("max_tokens", "is 0", "give logprobs as well, or at least 1 new token")
        check_integer("min_tokens", self.min_tokens, 0, MAX_NEW_TOKENS)
        check_integer("n", self.n, 1, MAX_CHOICES)
        check_integer("top_k", self.top_k, 0, 2**31 - 1)
        if self.seed is not None:
            check_integer("seed", self.seed, -(2**63), 2**64 - 1)
        check_number("temperature", self.temperature, 0.0, 100.0)
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise InvalidSamplingParamsError(
                "temperature", f"{self.temperature} is too small", f"give 0 (greedy) or {MIN_TEMPERATURE} to 100"
            )
        check_number("top_p", self.top_p, 0.0, 1.0, low_open=True)
        check_number("min_p", self.min_p, 0.0, 1.0)
        check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        check_number("repetition_penalty", self.repetition_penalty, 0.01, 10.0)
        check_flag("include_stop_str_in_output", self.include_stop_str_in_output)
        check_flag("ignore_eos", self.ignore_eos)
        check_flag("echo", self.echo)
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                check_integer(name, value, 0, MAX_ALTERNATIVES)
        if self.min_tokens > self.max_tokens:
            reason = f"{self.min_tokens} is more than max_tokens, which is {self.max_tokens}"
            raise InvalidSamplingParamsError("min_tokens", reason, "lower it, or raise max_tokens")

    @property
    def is_greedy(self) -> bool:
        """Whether the temperature is 0: take the most likely token after penalties, without random numbers."""
        return self.temperature == 0.0

    @property
    def prompt_alternatives(self) -> int | None:
        """Most likely tokens to keep beside each token of the prompt; None: its log probabilities are not wanted."""
        asked = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((count for count in asked if count is not None), default=None)

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
        if self.logit_bias:
            given["logit_bias"] = {str(token_id): bias for token_id, bias in self.logit_bias}
        return given


SAMPLING_FIELDS: Final = frozenset(field.name for field in fields(SamplingParams))
_DEFAULTS: Final = {field.name: field.default for field in fields(SamplingParams)}


def _bad_words(value: object) -> tuple[str, ...]:
    words = checked_texts("bad_words", value, MAX_BAD_WORDS, MAX_BAD_WORD_CHARS)
    if any(word.isspace() for word in words):
        raise InvalidSamplingParamsError("bad_words", "holds a string of blanks alone", "give words")
    return words


def _allowed_token_ids(value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    token_ids = checked_token_ids("allowed_token_ids", value, MAX_ALLOWED_TOKEN_IDS)
    if not token_ids:
        raise InvalidSamplingParamsError("allowed_token_ids", "is empty", "list the tokens that may be chosen")
    return token_ids
