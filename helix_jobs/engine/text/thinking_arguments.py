"""What a request says of thinking, in the variables that a chat template reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.text.refused_messages import RefusedMessagesError

if TYPE_CHECKING:
    from collections.abc import Collection

    from helix_jobs.engine.chat_options import ReasoningOptions

# Qwen3's, SmolLM3's, GLM's and Gemma's name; DeepSeek-V3.1's and Granite's.
_SWITCHES: Final = ("enable_thinking", "thinking")
_EFFORT: Final = "reasoning_effort"


def thinking_arguments(
    options: ReasoningOptions, variables: Collection[str], *, marks_thinking: bool
) -> dict[str, Any]:
    """Arguments for a template that reads these variables.

    A template that reads an effort is given it. One that only has a switch is switched off by ``none`` and on by any
    other effort. A model that thinks and has no switch is not asked to think: it does.

    Args:
        options: What the request asks.
        variables: The variables that the template reads.
        marks_thinking: The model thinks, as its template or vocabulary shows.

    Raises:
        RefusedMessagesError: The template reads no variable that could carry the wish.
    """
    arguments: dict[str, Any] = {}
    switch = next((name for name in _SWITCHES if name in variables), None)
    enabled = options.enabled
    if options.effort is not None:
        if _EFFORT in variables:
            arguments[_EFFORT] = options.effort
        elif switch is not None:
            enabled = options.effort != "none" if enabled is None else enabled
        else:
            raise _no_effect(_EFFORT, marks_thinking=marks_thinking)
    if enabled is not None and not (switch is None and enabled and marks_thinking):
        if switch is None:
            raise _no_effect("enable_thinking", marks_thinking=marks_thinking)
        arguments[switch] = enabled
    return arguments


def _no_effect(field: str, *, marks_thinking: bool) -> RefusedMessagesError:
    # A budget, too, has no effect on a model that does not think.
    remedy = "remove it, or bound the thinking with max_reasoning_tokens" if marks_thinking else "remove it"
    return RefusedMessagesError(
        f"{field}: the model's chat template reads no variable for it, so it would have no effect; {remedy}"
    )
