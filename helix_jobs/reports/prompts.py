"""What a request asks, as text: its prompt, or what the user said last. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping


def prompt_of(request: Mapping[str, Any]) -> str:
    """A stored request's prompt, or the last message of its user, or else of its chat."""
    prompt, messages = request.get("prompt"), request.get("messages")
    if isinstance(prompt, str):
        return prompt
    if isinstance(messages, list):
        said = [message for message in messages if isinstance(message, dict)]
        by_user = [message for message in said if message.get("role") == "user"]
        if said:
            return text_of((by_user or said)[-1].get("content"))
    tokens = request.get("prompt_token_ids")
    return counted(len(tokens), "token id") if isinstance(tokens, list) else ""


def text_of(value: Any) -> str:  # noqa: ANN401  (JSON)
    """A text as it is, another value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
