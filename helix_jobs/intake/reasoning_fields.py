"""Check what a line says of thinking: ``reasoning_effort``, ``enable_thinking`` and ``max_reasoning_tokens``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.bounds import MAX_NEW_TOKENS
from helix_jobs.engine.chat_options import ReasoningOptions
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.line_faults import kind
from helix_jobs.intake.numbers import whole

if TYPE_CHECKING:
    from collections.abc import Mapping

# OpenAI's grades, and the highest of other providers.
EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
# Ours, and vLLM's name for the same.
_BUDGET_NAMES: Final = ("max_reasoning_tokens", "thinking_token_budget")
REASONING_FIELDS: Final = ("reasoning_effort", "enable_thinking", *_BUDGET_NAMES)


def check_reasoning(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the stored form of a line's fields of thinking: ``ReasoningOptions`` as a mapping.

    Raises:
        InvalidFieldError: A field is wrong, or two contradict each other.
    """
    budget, name = None, _BUDGET_NAMES[0]
    for one in _BUDGET_NAMES:
        if values.get(one) is not None:
            if budget is not None and whole(values[one]) != whole(budget):
                raise InvalidFieldError(f"{prefix}{one}", f"differs from {name}", "give one of the two")
            budget, name = values[one], one
    options = _options(values.get("reasoning_effort"), values.get("enable_thinking"), budget, prefix, name)
    arguments = values.get("chat_template_kwargs")
    given = arguments.get("enable_thinking") if isinstance(arguments, dict) else None
    if options.enabled is not None and given is not None and given != options.enabled:
        raise InvalidFieldError(
            f"{prefix}enable_thinking", "differs from that in chat_template_kwargs", "give one of the two"
        )
    return options.to_dict()


def reasoning_options(stored: object) -> ReasoningOptions | None:
    """What ``check_reasoning`` stored, for the engine; None if the line asked for nothing.

    Raises:
        InvalidFieldError: A field is wrong.
    """
    if stored is None or stored == {}:
        return None
    if not isinstance(stored, dict):
        raise InvalidFieldError("reasoning", f"is {kind(stored)}, not an object", "submit the line again")
    return _options(stored.get("effort"), stored.get("enabled"), stored.get("max_tokens"), "")


def _options(
    effort: object, enabled: object, budget: object, prefix: str, budget_name: str = _BUDGET_NAMES[0]
) -> ReasoningOptions:
    if effort is not None and (not isinstance(effort, str) or effort not in EFFORTS):
        raise InvalidFieldError(f"{prefix}reasoning_effort", "is no known effort", f"give one of {', '.join(EFFORTS)}")
    if enabled is not None and not isinstance(enabled, bool):
        raise InvalidFieldError(f"{prefix}enable_thinking", f"is {kind(enabled)}", "give true or false")
    if effort is not None and enabled is not None and enabled == (effort == "none"):
        raise InvalidFieldError(f"{prefix}enable_thinking", "contradicts reasoning_effort", "give one of the two")
    budget = whole(budget)
    if budget is not None and (type(budget) is not int or not 0 <= budget <= MAX_NEW_TOKENS):
        reason = "is out of range" if type(budget) is int else f"is {kind(budget)}"
        raise InvalidFieldError(f"{prefix}{budget_name}", reason, f"give an integer from 0 to {MAX_NEW_TOKENS}")
    return ReasoningOptions(effort=effort, enabled=enabled, max_tokens=budget)
