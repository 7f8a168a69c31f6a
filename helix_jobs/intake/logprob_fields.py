"""The fields that ask for log probabilities, in other programs' spellings, as one number of alternatives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.sampling_params import MAX_ALTERNATIVES
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.line_faults import kind
from helix_jobs.intake.numbers import whole

if TYPE_CHECKING:
    from collections.abc import Mapping

# OpenAI's chat form, its completions' form, and llama.cpp's.
LOGPROB_FIELDS: Final = frozenset({"logprobs", "top_logprobs", "n_probs"})
_REMEDY: Final = f"give an integer from 0 to {MAX_ALTERNATIVES}"


def read_logprobs(values: Mapping[str, Any], prefix: str = "") -> int | None:
    """How many alternatives a line wants beside each token's log probability; None: it wants no log probability.

    ``logprobs`` is a boolean beside ``top_logprobs``, or the number itself. So is llama.cpp's ``n_probs``, where 0 asks
    for nothing.

    Raises:
        InvalidFieldError: A field has no such value, or two differ.
    """
    logprobs, top = values.get("logprobs"), _count(values, "top_logprobs", prefix)
    if logprobs is None or logprobs is False:
        found = None
        if top:
            raise InvalidFieldError(f"{prefix}top_logprobs", "stands without logprobs", "give logprobs true as well")
    elif logprobs is True:
        found = top or 0
    else:
        found = _count(values, "logprobs", prefix)
        if top is not None and top != found:
            raise InvalidFieldError(f"{prefix}top_logprobs", "differs from logprobs", "give one of the two")
    others = _count(values, "n_probs", prefix)
    if others and found not in (None, others):
        raise InvalidFieldError(f"{prefix}n_probs", "differs from logprobs", "give one of the two")
    return others or found


def _count(values: Mapping[str, Any], name: str, prefix: str) -> int | None:
    value = whole(values.get(name))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        remedy = _REMEDY.replace("give", "give true or false, or", 1) if name == "logprobs" else _REMEDY
        raise InvalidFieldError(f"{prefix}{name}", f"is {kind(value)}", remedy)
    if not 0 <= value <= MAX_ALTERNATIVES:
        raise InvalidFieldError(f"{prefix}{name}", f"{value} is out of range", _REMEDY)
    return value
