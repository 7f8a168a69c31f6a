"""Turn a stored request back into a line that asks for the same, so that it can be submitted again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# Fields that a line and a stored request have in common.
_SAME: Final = (
    *("prompt", "messages", "chat_template_kwargs", "tools", "tool_choice", "parallel_tool_calls"),
    *("truncate_prompt", "score_by", "accept", "model", "adapter"),
)
# A key of the stored request -> the line's field.
_RENAMED: Final[Mapping[str, str]] = {"prompt_token_ids": "prompt", "score_choices": "choices"}
_REASONING: Final[Mapping[str, str]] = {
    "effort": "reasoning_effort",
    "enabled": "enable_thinking",
    "max_tokens": "max_reasoning_tokens",
}
_STRUCTURED: Final[Mapping[str, str]] = {"json_schema": "json"}


def line_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a line, in Helix' own form, whose stored request is this one.

    The endpoint is left out, as it follows from the fields; so is a seed that came from batch and line. A last message
    of the assistant is continued without a field that says so.

    Args:
        request: The content of ``jobs.request``.
    """
    line = {name: request[name] for name in _SAME if name in request}
    line |= {field: request[name] for name, field in _RENAMED.items() if name in request}
    reasoning = request.get("reasoning", {})
    line |= {field: reasoning[name] for name, field in _REASONING.items() if name in reasoning}
    if "constraint" in request:
        line["structured_outputs"] = _structured_outputs(request["constraint"])
    if metadata := request.get("metadata"):
        line["metadata"] = metadata
    return {**line, **request.get("sampling", {})}


def _structured_outputs(constraint: Mapping[str, str]) -> dict[str, Any]:
    kind = constraint["kind"]
    spacing = {"whitespace": constraint["whitespace"]} if "whitespace" in constraint else {}
    return {_STRUCTURED.get(kind, kind): kind == "json_object" or constraint["value"], **spacing}
