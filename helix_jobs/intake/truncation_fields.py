"""Read what a line asks to keep of a prompt that is too long: our own object, or vLLM's number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helix_jobs.engine.prompt_truncation import TruncatePrompt
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.combinations import TWO_TRUNCATIONS
from helix_jobs.intake.numbers import whole

if TYPE_CHECKING:
    from collections.abc import Mapping


def read_truncation(values: Mapping[str, Any], prefix: str = "") -> TruncatePrompt | None:
    """What a line asks to keep; None if it does not ask.

    Raises:
        InvalidFieldError: The field is wrong, or both fields are given.
    """
    number, detailed = values.get("truncate_prompt_tokens"), values.get("truncate_prompt")
    if number is not None and detailed is not None:
        raise TWO_TRUNCATIONS.error(f"{prefix}truncate_prompt")
    if isinstance(detailed, dict) and "tokens" in detailed:
        detailed = {**detailed, "tokens": whole(detailed["tokens"])}
    try:
        if number is not None:
            return TruncatePrompt.from_number(whole(number))
        return None if detailed is None else TruncatePrompt.from_mapping(detailed)
    except InvalidFieldError as error:
        raise InvalidFieldError(prefix + error.field, error.reason, error.remedy) from error
