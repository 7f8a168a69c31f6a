"""Rows of the list of answers, ready to be shown. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import regex

from helix_jobs.api.page.texts import excerpt
from helix_jobs.plain_text import printable
from helix_jobs.storage.answer_heads import REQUEST_HEAD, TEXT_HEAD
from helix_jobs.storage.states import JobState
from helix_jobs.wording import counted, duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.storage.answer_records import AnswerHead

_PROMPT_CHARS: Final = 160
_ANSWER_CHARS: Final = 320
_ID_CHARS: Final = 80
# In a request that is cut off: the beginning of the last text that it still has, without escapes cut in half.
_TEXT_IN_JSON: Final = regex.compile(r'"(?:prompt|content|text)":"((?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])*)')
_FINISHES: Final = {"length": "cut off", "tool_calls": "tool calls"}


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """A job in the list.

    Attributes:
        line: Its line.
        custom_id: What its submitter called it; empty without a name.
        state: Its state: one word.
        note: What is special about how it ended.
        prompt: The prompt's beginning; of a conversation, that of what the user said last.
        answer: The beginning of the answer, or of the error.
        kind: What ``answer`` is: answer, thinking, error, or nothing.
        more: How many further answers the job has, in words.
        tokens: Tokens of the answer; None without one.
        time: From the claim to the end, in words.
    """

    line: int
    custom_id: str
    state: str
    note: str
    prompt: str
    answer: str
    kind: str
    more: str
    tokens: int | None
    time: str


def answer_row(head: AnswerHead) -> AnswerRow:
    """A job's row."""
    if head.state is None:
        text = "This row cannot be read: helix db check names what is wrong with it, and --repair makes it readable."
        return AnswerRow(head.line, "", "unreadable", "", "", text, "error", "", None, "")
    kind, answer = _answer(head)
    others = head.choices - 1
    return AnswerRow(
        line=head.line,
        custom_id=excerpt(head.custom_id or "", _ID_CHARS),
        state=str(head.state),
        note=_note(head),
        prompt=excerpt(prompt_of(head.request or ""), _PROMPT_CHARS),
        answer=answer,
        kind=kind,
        more=f"and {counted(others, 'further answer')}" if others > 0 else "",
        tokens=head.completion_tokens,
        time="" if head.total_seconds is None else duration(head.total_seconds),
    )


def prompt_of(request: str) -> str:
    """What a stored request asks, or the beginning of it: the prompt, or what the user said last in a conversation."""
    if len(request) > REQUEST_HEAD:
        found = _TEXT_IN_JSON.findall(request[:REQUEST_HEAD])
        return _unescaped(found[-1]) + "\N{HORIZONTAL ELLIPSIS}" if found else request
    try:
        values = json.loads(request)
    except (ValueError, RecursionError):
        return request
    if not isinstance(values, dict):
        return request
    return _asked(values)


def _asked(values: Mapping[str, Any]) -> str:
    """What a request asks."""
    if isinstance(values.get("prompt"), str):
        return str(values["prompt"])
    if isinstance(values.get("prompt_token_ids"), list):
        return counted(len(values["prompt_token_ids"]), "token id")
    messages = values.get("messages")
    if not isinstance(messages, list) or not messages:
        return ""
    users = (one for one in reversed(messages) if isinstance(one, dict) and one.get("role") == "user")
    return _content(next(users, messages[-1]))


def _content(message: Any) -> str:  # noqa: ANN401  (any JSON: a person may have changed the row)
    content = message.get("content") if isinstance(message, dict) else message
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _unescaped(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text


def _answer(head: AnswerHead) -> tuple[str, str]:
    if head.output_text:
        return "answer", excerpt(head.output_text[:TEXT_HEAD], _ANSWER_CHARS, is_cut=len(head.output_text) > TEXT_HEAD)
    if head.reasoning_text and not head.called_tools:
        return "thinking", excerpt(head.reasoning_text, _ANSWER_CHARS)
    if head.error_message:
        return "error", excerpt(head.error_message, _ANSWER_CHARS)
    return "nothing", {JobState.QUEUED: "waits", JobState.RUNNING: "runs"}.get(head.state or JobState.SUCCEEDED, "")


def _note(head: AnswerHead) -> str:
    notes = []
    if head.error_code:
        notes.append(printable(head.error_code).replace("_", " "))
    if head.finish_reason in _FINISHES:
        notes.append(_FINISHES[head.finish_reason])
    if head.is_valid is False:
        notes.append("form not kept")
    if head.reasoning_text:
        notes.append("thought")
    if head.tries:
        notes.append(f"refused or asked again {head.tries}\N{MULTIPLICATION SIGN}")
    return ", ".join(notes)
