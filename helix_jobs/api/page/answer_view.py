"""One answer, ready to be shown: its texts, calls, probabilities and times. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.api.page.answer_prompt import ToolCall, calls_of
from helix_jobs.api.page.texts import ShownText, pretty_json, shown
from helix_jobs.errors import ErrorCode
from helix_jobs.reports.outcome_words import refused_answers
from helix_jobs.storage.states import JobState
from helix_jobs.wording import counted, duration, percent, rate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.storage.records import JobResult

_SCORES: Final = 100
_PRETTY_CHARS: Final = 200_000
_REMEDIES: Final[Mapping[str, str]] = {
    ErrorCode.INVALID_REQUEST: "Change the line, and submit it again.",
    ErrorCode.PROMPT_TOO_LONG: "Shorten the prompt, let the line be truncated (truncate_prompt), or serve a model with "
    "a longer context; then retry.",
    ErrorCode.OUT_OF_MEMORY: "Give the worker more memory for its cache (HELIX_KV_CACHE_MB), or shorten the prompt; "
    "then retry.",
    ErrorCode.WORKER_LOST: "Look into the worker's log for why it ended; then retry.",
    ErrorCode.SERVER_LOST: "Look into the log of the server that computes the answers for why it ended; then retry.",
    ErrorCode.ENGINE_ERROR: "Look into the worker's log; then retry.",
    ErrorCode.NOT_ACCEPTED: "Loosen the line's own rule and submit it again, or retry to give it its tries again.",
    ErrorCode.DEADLINE: "Raise HELIX_JOB_TIMEOUT or lower max_tokens; then retry.",
}


@dataclass(frozen=True, slots=True)
class Score:
    """An option that was scored."""

    option: ShownText
    total: float
    mean: float
    tokens: int


@dataclass(frozen=True, slots=True)
class AnswerView:
    """One answer of a job.

    Attributes:
        text: What the model wrote; None without an answer.
        pretty: The same as JSON on lines, where it is JSON.
        thinking: What it thought before.
        calls: Its calls of tools.
        scores: Options that were scored, the best first.
        error: Why there is no answer.
        remedy: What to do about it.
        waits: What a job without an answer does, in words.
        times: Names and values of its times.
        tokens: The same of its tokens.
        origin: The same of what answered.
    """

    text: ShownText | None
    pretty: ShownText | None
    thinking: ShownText | None
    calls: tuple[ToolCall, ...]
    scores: tuple[Score, ...]
    error: str
    remedy: str
    waits: str
    times: tuple[tuple[str, str], ...]
    tokens: tuple[tuple[str, str], ...]
    origin: tuple[tuple[str, str], ...]


def answer_view(result: JobResult) -> AnswerView:
    """What is shown of an answer."""
    text = result.output_text
    pretty = None if text is None or len(text) > _PRETTY_CHARS else pretty_json(text)
    return AnswerView(
        text=None if text is None else shown(text),
        pretty=None if pretty is None or pretty == text else shown(pretty),
        thinking=None if result.reasoning_text is None else shown(result.reasoning_text),
        calls=calls_of(result.tool_calls),
        scores=tuple(_scores(result.scores)),
        error=result.error_message or (result.error_code or "").replace("_", " "),
        remedy=_REMEDIES.get(result.error_code or "", ""),
        waits=_waits(result),
        times=tuple(_given(_times(result))),
        tokens=tuple(_given(_tokens(result))),
        origin=tuple(_given(_origin(result))),
    )


def _waits(result: JobResult) -> str:
    if result.state == JobState.QUEUED:
        return "This job waits for a worker."
    if result.state == JobState.RUNNING:
        return "This job runs now. Load the page again for its answer."
    return "This job was cancelled before it was answered." if result.state == JobState.CANCELLED else ""


def _scores(scores: Mapping[str, Any] | None) -> list[Score]:
    found = [
        Score(shown(option, 400), float(value["sum"]), float(value["mean"]), int(value["tokens"]))
        for option, value in (scores or {}).items()
        if isinstance(value, dict) and {"sum", "mean", "tokens"} <= value.keys()
    ]
    return sorted(found, key=lambda score: -score.total)[:_SCORES]


def _times(result: JobResult) -> dict[str, str | None]:
    return {
        "Waited for its turn": _seconds(result.queue_seconds),
        "To the first token": _seconds(result.ttft_seconds),
        "From the first token to the last": _seconds(result.decode_seconds),
        "Altogether": _seconds(result.total_seconds),
        "Speed": None if result.tokens_per_second is None else f"{rate(result.tokens_per_second)} tokens/s",
        "Queued": f"{result.queued_at.astimezone():%Y-%m-%d %H:%M:%S}",
        "Taken": None if result.claimed_at is None else f"{result.claimed_at.astimezone():%Y-%m-%d %H:%M:%S}",
        "Ended": None if result.finished_at is None else f"{result.finished_at.astimezone():%Y-%m-%d %H:%M:%S}",
    }


def _tokens(result: JobResult) -> dict[str, str | None]:
    if result.output_text is None:
        return {}
    return {
        "Prompt": _of_first(result, result.prompt_tokens),
        "Shared with other prompts": _of_first(result, result.cached_prompt_tokens),
        "Cut from the prompt": _number(result.dropped_prompt_tokens),
        "Answer": _number(result.completion_tokens),
        "Thinking, of these": _number(result.reasoning_tokens),
        "Drafted": _number(result.draft_tokens),
        "Accepted": _accepted(result),
        "Tokens a step": None if result.mean_acceptance_length is None else f"{result.mean_acceptance_length:.2f}",
        "Log probability": None if result.cumulative_logprob is None else f"{result.cumulative_logprob:.3f}",
    }


def _origin(result: JobResult) -> dict[str, str | None]:
    return {
        "Model": result.target_model,
        "Draft": result.draft_model,
        "Device": result.device and f"{result.device}, {result.dtype}",
        "Worker": result.worker_id,
        "From cache": None if result.from_cache is None else f"the answer of job {result.from_cache}",
        "Priority": str(result.priority) if result.priority else None,
        "Taken by workers": counted(result.attempts, "time") if result.attempts > 1 else None,
        "Tried again": refused_answers(result.tries) if result.tries else None,
        "Keeps its form": None if result.is_valid is None else "yes" if result.is_valid else "no",
    }


def _of_first(result: JobResult, tokens: int | None) -> str | None:
    """Tokens of the prompt, which count in the first answer's row alone."""
    return None if result.choice else _number(tokens)


def _accepted(result: JobResult) -> str | None:
    if not result.draft_tokens or result.accepted_tokens is None:
        return None
    return f"{result.accepted_tokens:,} ({percent(result.accepted_tokens / result.draft_tokens)})"


def _seconds(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else duration(seconds)


def _number(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _given(values: Mapping[str, str | None]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in values.items() if value]
