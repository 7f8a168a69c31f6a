"""One result as a line of an OpenAI Batch output or error file.

Source: the type definitions of openai-python (``batch_request_output``, ``chat_completion``, ``completion``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import ErrorCode
from helix_jobs.intake.forms import CHAT_ENDPOINT, COMPLETION_ENDPOINT
from helix_jobs.results.logprobs import (
    chat_content,
    completion_logprobs,
    read_logprobs,
    shown_text,
    vllm_prompt_logprobs,
)
from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from helix_jobs.storage.records import JobResult
    from helix_jobs.token_logprobs import TokenLogprobs

# A request that OpenAI would have rejected: an HTTP status with an error body, and ``error`` null. -> OpenAI's code.
_REJECTED: Final[Mapping[str, str]] = {
    ErrorCode.INVALID_REQUEST: "invalid_request",
    ErrorCode.PROMPT_TOO_LONG: "context_length_exceeded",
}
# A request that got no answer: ``response`` null and ``error`` set. -> OpenAI's code; where it has none, ours is used.
_UNANSWERED: Final[Mapping[str, str]] = {ErrorCode.DEADLINE: "batch_expired"}
_CANCELLED: Final = {"code": "batch_cancelled", "message": "This request was cancelled before it was answered."}
_EXPIRED: Final = {"code": "batch_expired", "message": "The completion window ended before this request was answered."}
_BAD_REQUEST: Final = 400
_OK: Final = 200


def openai_line(choices: Sequence[JobResult], *, has_expired: bool = False) -> dict[str, Any]:
    """Build the output line of one finished job from its answers; a job without an answer comes as one, too.

    A reader must check both ``error`` and ``response.status_code``. A job without a ``custom_id`` gets
    ``<batch id>-line-<number>``, because OpenAI's readers join on that field. No line can already have this name, as
    the batch's id is newer than its lines.

    Args:
        choices: The job's answers.
        has_expired: A cancelled job was cancelled because its batch's completion window ended.
    """
    result = choices[0]
    code = result.error_code or ErrorCode.ENGINE_ERROR
    line: dict[str, Any] = {
        "id": f"batch_req_{result.job_id}",
        "custom_id": result.custom_id if result.custom_id is not None else f"{result.batch_id}-line-{result.line}",
        "response": None,
        "error": None,
    }
    if result.state == JobState.SUCCEEDED:
        line["response"] = _response(result, _OK, _body(choices))
    elif result.state == JobState.CANCELLED:
        line["error"] = dict(_EXPIRED if has_expired else _CANCELLED)
    elif rejected := _REJECTED.get(code):
        error = {"message": result.error_message, "type": "invalid_request_error", "param": None, "code": rejected}
        line["response"] = _response(result, _BAD_REQUEST, {"error": error})
    else:
        line["error"] = {"code": _UNANSWERED.get(code, str(code)), "message": result.error_message}
    return line


def _response(result: JobResult, status_code: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status_code, "request_id": f"req_{result.job_id}", "body": body}


def _body(choices: Sequence[JobResult]) -> dict[str, Any]:
    result = choices[0]
    is_chat = _endpoint(result.request) == CHAT_ENDPOINT
    # The prompt's log probabilities stand with the first choice, and belong to all.
    prompt = read_logprobs(result, result.prompt_logprobs)
    prompt_tokens = result.prompt_tokens or 0
    completion_tokens = sum(choice.completion_tokens or 0 for choice in choices)
    return {
        "id": f"chatcmpl-{result.job_id}" if is_chat else f"cmpl-{result.job_id}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": _epoch(result.finished_at),
        # The model that answered; the line may have named another one.
        "model": result.target_model,
        "choices": [_choice(choice, prompt, is_chat=is_chat) for choice in choices],
        **(_prompt_logprobs(result, prompt) if is_chat else {}),
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": result.cached_prompt_tokens or 0},
            **_completion_details(choices),
        },
    }


def _choice(result: JobResult, prompt: TokenLogprobs | None, *, is_chat: bool) -> dict[str, Any]:
    answer = _chat_answer(result) if is_chat else _completion_answer(result, prompt)
    if not is_chat:
        answer |= _prompt_logprobs(result, prompt)
    if result.scores is not None:
        answer["scores"] = result.scores
    return {"index": result.choice, **answer, "finish_reason": result.finish_reason}


def _prompt_logprobs(result: JobResult, prompt: TokenLogprobs | None) -> dict[str, Any]:
    """The field of vLLM, which stands in a completion's choice and beside a chat's choices."""
    if prompt is None or "prompt_logprobs" not in _sampling(result):
        return {}
    return {"prompt_logprobs": vllm_prompt_logprobs(prompt)}


def _chat_answer(result: JobResult) -> dict[str, Any]:
    found = read_logprobs(result, result.logprobs)
    return {
        "message": _message(result),
        "logprobs": None if found is None else {"content": chat_content(found), "refusal": None},
    }


def _completion_answer(result: JobResult, prompt: TokenLogprobs | None) -> dict[str, Any]:
    text = result.output_text or ""
    found = read_logprobs(result, result.logprobs)
    parts = [] if found is None else [found]
    if _sampling(result).get("echo"):
        given = result.request.get("prompt")
        # Token ids have no text of their own, and of a truncated prompt only its tokens are left.
        if prompt is not None and (not isinstance(given, str) or result.dropped_prompt_tokens):
            text = shown_text(prompt) + text
        else:
            text = (given or "") + text
        if prompt is not None and parts:
            parts.insert(0, prompt)
    return {"text": text, "logprobs": completion_logprobs(parts, text) if parts else None}


def _sampling(result: JobResult) -> Mapping[str, Any]:
    sampling = result.request.get("sampling")
    return sampling if isinstance(sampling, dict) else {}


def _message(result: JobResult) -> dict[str, Any]:
    """The assistant's message. Thinking stands under vLLM's name and the older one that most clients read."""
    message: dict[str, Any] = {"role": "assistant", "content": result.output_text, "refusal": None}
    if result.reasoning_text is not None:
        message["reasoning"] = message["reasoning_content"] = result.reasoning_text
    if result.tool_calls:
        message["content"] = result.output_text or None
        message["tool_calls"] = list(result.tool_calls)
    return message


def _completion_details(choices: Sequence[JobResult]) -> dict[str, Any]:
    """How many of the tokens were thinking; nothing where no answer could think."""
    counts = [choice.reasoning_tokens for choice in choices if choice.reasoning_tokens is not None]
    return {"completion_tokens_details": {"reasoning_tokens": sum(counts)}} if counts else {}


def _endpoint(request: Mapping[str, Any]) -> str:
    """The endpoint that the line named, or the one that fits its form."""
    return request.get("endpoint") or (CHAT_ENDPOINT if "messages" in request else COMPLETION_ENDPOINT)


def _epoch(moment: datetime | None) -> int:
    return 0 if moment is None else int(moment.timestamp())
