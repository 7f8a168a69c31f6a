"""Chunks: the pieces of a streamed answer in OpenAI's form, as server-sent events.

Source: the type definitions of openai-python (``chat_completion_chunk``, ``completion``).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.json_line import json_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.api.growing_answer import Delta

DONE: Final = b"data: [DONE]\n\n"
# What of a whole answer's choice has its own place in a chunk; the rest of it comes with its end.
_PLACED: Final = frozenset({"index", "message", "text", "logprobs", "finish_reason"})
# A comment: clients skip it, and proxies see that the connection lives.
WAITING: Final = b": waiting\n\n"


def event(values: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json_line(values)}\n\n".encode()


class Chunks:
    """Makes the chunks of one answer.

    Args:
        job_id: The job.
        model: The model that answers.
        created: Seconds since 1970.
        is_chat: Whether the answer is a message.
        has_usage: Whether a last chunk says how many tokens there were.
    """

    def __init__(self, job_id: int, model: str, created: int, *, is_chat: bool, has_usage: bool) -> None:
        self._is_chat = is_chat
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{job_id}" if is_chat else f"cmpl-{job_id}",
            "object": "chat.completion.chunk" if is_chat else "text_completion",
            "created": created,
            "model": model,
        }
        self._has_usage = has_usage
        self._opened: set[int] = set()

    def grown(self, delta: Delta) -> bytes:
        """A choice has grown."""
        return self._choice(delta.choice, self._content(delta))

    def ended(self, choice: Mapping[str, Any], rest: Delta, beside: Mapping[str, Any] | None = None) -> bytes:
        """A choice has ended.

        Args:
            choice: The choice in the whole answer's body.
            rest: What was not sent of it.
            beside: What is to stand beside the chunk's choices.
        """
        content = self._content(rest)
        calls = choice["message"].get("tool_calls") if self._is_chat else None
        if calls:
            content["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
        asked = {name: value for name, value in choice.items() if name not in _PLACED}
        return self._choice(
            rest.choice,
            content,
            finish_reason=choice["finish_reason"],
            logprobs=choice.get("logprobs"),
            asked=asked,
            beside=beside or {},
        )

    def usage(self, body: Mapping[str, Any]) -> bytes:
        """The tokens of the whole answer; nothing where nobody asked for them."""
        return event({**self._head, "choices": [], "usage": body["usage"]}) if self._has_usage else b""

    def _content(self, delta: Delta) -> dict[str, Any]:
        if not self._is_chat:
            return {"text": delta.text}
        content: dict[str, Any] = {}
        if delta.choice not in self._opened:
            self._opened.add(delta.choice)
            content["role"] = "assistant"
        if delta.reasoning:
            content["reasoning"] = content["reasoning_content"] = delta.reasoning
        if delta.text or "role" in content:
            content["content"] = delta.text
        return content

    def _choice(
        self,
        index: int,
        content: dict[str, Any],
        *,
        finish_reason: str | None = None,
        logprobs: object = None,
        asked: Mapping[str, Any] = MappingProxyType({}),
        beside: Mapping[str, Any] = MappingProxyType({}),
    ) -> bytes:
        inner = {"delta": content} if self._is_chat else content
        choice = {"index": index, **inner, "logprobs": logprobs, **asked, "finish_reason": finish_reason}
        usage = {"usage": None} if self._has_usage else {}
        return event({**self._head, "choices": [choice], **beside, **usage})
