"""The sampling flags of ``submit``: defaults for lines that do not give the field."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

import click

from helix_jobs.engine.field_checks import InvalidSamplingParamsError
from helix_jobs.engine.prompt_truncation import TruncatePrompt
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.errors import InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN: Final = SamplingParams()


def _from_environment(name: str, kind: type, text: str) -> dict[str, Any]:
    shown = "" if name == "seed" else f" [default: {getattr(_PLAIN, name):g}]"
    return {"type": kind, "envvar": f"HELIX_{name.upper()}", "help": f"{text}{shown}"}


def _parse_biases(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[int, float], ...]:
    """Split each ID=BIAS at its equals sign."""
    try:
        pairs = [value.split("=") for value in values]
        return tuple((int(token_id), float(bias)) for token_id, bias in pairs)
    except ValueError as error:
        raise click.BadParameter("give it as ID=BIAS, such as 11=-5.", ctx, parameter) from error


# Field -> the attributes of its flag. SamplingParams checks the ranges, for flags and lines alike.
_FLAGS: Final[dict[str, dict[str, Any]]] = {
    name: _from_environment(name, kind, text)
    for name, kind, text in (
        ("max_tokens", int, "New tokens at most."),
        ("min_tokens", int, "New tokens before which an answer does not end by itself."),
        ("temperature", float, "0 decodes greedily; higher is more random."),
        ("top_p", float, "Keep the most likely tokens up to this probability mass; 1 is off."),
        ("top_k", int, "Keep the K most likely tokens; 0 is off."),
        ("min_p", float, "Drop tokens less likely than this share of the most likely one; 0 is off."),
        ("n", int, "Answers to each line, 1 to 128; each has its own random numbers."),
        ("seed", int, "Seed of every line's random numbers; by default each line has its own."),
        ("presence_penalty", float, "Lower tokens that occurred in the answer, once."),
        ("frequency_penalty", float, "Lower tokens for each time they occurred in the answer."),
        ("repetition_penalty", float, "Divide tokens seen in prompt or answer; 1 is off."),
    )
} | {
    "stop": {"multiple": True, "metavar": "TEXT", "help": "End the answer before this text; repeatable."},
    "stop_token_ids": {"type": int, "multiple": True, "help": "End the answer at this token; repeatable."},
    "include_stop_str_in_output": {"is_flag": True, "help": "Keep the text or token that ended the answer."},
    "logit_bias": {
        "multiple": True,
        "callback": _parse_biases,
        "metavar": "ID=BIAS",
        "help": "Add -100 to 100 to the logit of this token; repeatable.",
    },
    "bad_words": {"multiple": True, "metavar": "TEXT", "help": "Keep this word out of the answer; repeatable."},
    "allowed_token_ids": {"type": int, "multiple": True, "help": "Choose no token but this one; repeatable."},
    "ignore_eos": {"is_flag": True, "help": "Go on past the model's end-of-sequence token."},
    "logprobs": {"type": int, "metavar": "K", "help": "Keep log probabilities: of each token and the K most likely."},
    "prompt_logprobs": {"type": int, "metavar": "K", "help": "Keep those of the prompt's tokens, too."},
    "echo": {"is_flag": True, "help": "Begin each completion's text with its prompt."},
}
SAMPLING_FLAGS: Final = frozenset(_FLAGS)
# The variables that give flags their defaults.
SAMPLING_VARIABLES: Final = frozenset(flag["envvar"] for flag in _FLAGS.values() if "envvar" in flag)


def sampling_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the sampling flags, passed as one argument ``defaults: SamplingParams``."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401  (passes click's arguments on)
        given = {name: kwargs.pop(name) for name in SAMPLING_FLAGS}
        # A flag that is not given is None, () or False and leaves SamplingParams' default. A 0 is a given value.
        given = {name: value for name, value in given.items() if not (value is None or value is False or value == ())}
        try:
            defaults = SamplingParams(**given)
        except InvalidSamplingParamsError as error:
            raise click.BadParameter(f"{error.reason}; {error.remedy}.", param_hint=_flag(error.field)) from error
        function(*args, defaults=defaults, **kwargs)

    decorated: Callable[..., None] = command
    for name, attributes in reversed(_FLAGS.items()):
        decorated = click.option(_flag(name), name, **attributes)(decorated)
    return decorated


def truncation_option(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--truncate-prompt-tokens``, passed as ``truncate_prompt: TruncatePrompt | None``."""
    option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
        "--truncate-prompt-tokens",
        "truncate_prompt",
        type=int,
        envvar="HELIX_TRUNCATE_PROMPT_TOKENS",
        callback=_parse_truncation,
        metavar="K",
        help="Keep the last K tokens of a longer prompt; -1 keeps as many as fit. [default: such a job fails]",
    )
    return option(function)


def _parse_truncation(ctx: click.Context, parameter: click.Parameter, value: int | None) -> TruncatePrompt | None:
    try:
        return None if value is None else TruncatePrompt.from_number(value)
    except InvalidFieldError as error:
        raise click.BadParameter(f"{error.reason}; {error.remedy}.", ctx, parameter) from error


def _flag(name: str) -> str:
    # One id or word each time the flag is given.
    return f"--{name.replace('_ids', '_id').replace('_words', '_word').replace('_', '-')}"
