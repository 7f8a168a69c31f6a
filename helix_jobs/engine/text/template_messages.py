"""Messages as chat templates take them: the shapes in which transformers passes them, and what one template needs."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.text.template_probe import ContentForm, ToolProbe

_SHORT_ID_CHARS: Final = 9


def as_given(message: Mapping[str, Any], form: ContentForm, tools: ToolProbe) -> dict[str, Any]:
    """A stored message as the template takes it.

    Args:
        message: Content is a string, a call's arguments are JSON text.
        form: How its text is passed.
        tools: What the template needs of calls.
    """
    given = {**message, "content": form.of(message["content"])}
    thought = message.get("reasoning_content")
    if thought is not None:
        given["thinking"] = thought  # gpt-oss templates read this name
    calls = message.get("tool_calls")
    if calls:
        given["tool_calls"] = [_call(call, tools) for call in calls]
        if not message["content"]:
            given["content"] = None if tools.null_content else ""
    if tools.short_ids and "tool_call_id" in given:
        given["tool_call_id"] = _short(given["tool_call_id"])
    return given


def tool_as_given(tool: Mapping[str, Any], tools: ToolProbe) -> Mapping[str, Any]:
    """A function as the template takes it: without a description some fail, and some without parameters.

    Args:
        tool: The function in OpenAI's form.
        tools: What the template needs.
    """
    if not tools.whole_functions:
        return tool
    nothing = {"description": "", "parameters": {"type": "object", "properties": {}}}
    return {**tool, "function": {**nothing, **tool["function"]}}


def _call(call: Mapping[str, Any], tools: ToolProbe) -> dict[str, Any]:
    function = dict(call["function"])
    if not tools.arguments_as_text:
        function["arguments"] = json.loads(function["arguments"])
    identifier = _short(call["id"]) if tools.short_ids else call["id"]
    return {"id": identifier, "type": "function", "function": function}


def _short(identifier: str) -> str:
    """A name of nine letters and digits, the same for the same id: Mistral's templates take no other."""
    if len(identifier) == _SHORT_ID_CHARS and identifier.isascii() and identifier.isalnum():
        return identifier
    return hashlib.sha256(identifier.encode(errors="surrogatepass")).hexdigest()[:_SHORT_ID_CHARS]
