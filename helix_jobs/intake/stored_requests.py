"""Turn a stored request into the engine's request."""

from __future__ import annotations

from typing import Any, Final

from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.prompt_truncation import TruncatePrompt
from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.score_choices import ScoreChoices
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.chat_fields import check_chat_template_kwargs, continues
from helix_jobs.intake.line_faults import kind
from helix_jobs.intake.reasoning_fields import reasoning_options
from helix_jobs.intake.texts import check_messages, check_text, check_token_ids
from helix_jobs.intake.tool_fields import tool_use

_SEED_LOW: Final = -(2**63)
_SEED_HIGH: Final = 2**64 - 1


def to_engine_request(job_id: int, stored: object) -> Request:
    """Turn a job's stored request into the engine's request, and check every field again.

    Raises:
        InvalidRequestError: The stored request is malformed.
    """
    if not isinstance(stored, dict):
        raise InvalidFieldError("request", f"is {kind(stored)}, not an object", "submit the line again")
    seed, sampling = stored.get("seed"), stored.get("sampling", {})
    if isinstance(seed, bool) or not isinstance(seed, int) or not _SEED_LOW <= seed <= _SEED_HIGH:
        raise InvalidFieldError("seed", "is no 64-bit integer", "submit the line again")
    if not isinstance(sampling, dict):
        raise InvalidFieldError("sampling", f"is {kind(sampling)}, not an object", "submit the line again")
    truncation = stored.get("truncate_prompt")
    prompt, messages, token_ids = (stored.get(key) for key in ("prompt", "messages", "prompt_token_ids"))
    if sum(one is not None for one in (prompt, messages, token_ids)) != 1:
        raise InvalidFieldError("request", "does not hold one of prompt and messages", "submit the line again")
    constraint = stored.get("constraint")
    if constraint is not None and not isinstance(constraint, dict):
        raise InvalidFieldError("constraint", f"is {kind(constraint)}, not an object", "submit the line again")
    checked = None if messages is None else check_messages(messages)
    return Request(
        request_id=str(job_id),
        sampling_params=SamplingParams.from_mapping(sampling),
        seed=seed,
        prompt=None if prompt is None else check_text(prompt),
        prompt_token_ids=None if token_ids is None else tuple(check_token_ids(token_ids, "prompt")),
        score_choices=ScoreChoices.from_stored(stored),
        messages=None if checked is None else tuple(checked),
        continue_final_message=checked is not None and continues(stored, checked),
        tools=None if checked is None else tool_use(stored),
        reasoning=None if checked is None else reasoning_options(stored.get("reasoning")),
        truncate_prompt=None if truncation is None else TruncatePrompt.from_mapping(truncation),
        chat_template_kwargs=check_chat_template_kwargs(stored.get("chat_template_kwargs"), "chat_template_kwargs"),
        constraint=None if constraint is None else Constraint.from_mapping(constraint),
        adapter=_name(stored, "adapter"),
        model=_name(stored, "model"),
        stream=_name(stored, "stream"),
    )


def _name(stored: dict[str, Any], field: str) -> str | None:
    value = stored.get(field)
    if value is not None and not isinstance(value, str):
        raise InvalidFieldError(field, f"is {kind(value)}", "submit the line again")
    return value
