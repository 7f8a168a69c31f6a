"""OpenAI's batch object, derived from what was asked for and from the state of its jobs. Pure.

Source: the type definitions of openai-python (``batch``, ``batch_usage``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.storage.states import JobState

if TYPE_CHECKING:
    from datetime import datetime

    from helix_jobs.storage.api_records import ApiBatch
    from helix_jobs.storage.records import BatchStatus

_BATCH_PREFIX: Final = "batch_"
_OUTPUT: Final = "file-output-"
_ERRORS: Final = "file-errors-"


def output_file_id(api_id: str) -> str:
    """The id of the file of a batch's answers."""
    return _OUTPUT + api_id.removeprefix(_BATCH_PREFIX)


def error_file_id(api_id: str) -> str:
    """The id of the file of a batch's requests without an answer that counts."""
    return _ERRORS + api_id.removeprefix(_BATCH_PREFIX)


def batch_of_file(file_id: str) -> tuple[str, bool] | None:
    """The batch that a file id names the output of, and whether it is the file of errors; None if it is another id."""
    for prefix in (_OUTPUT, _ERRORS):
        if file_id.startswith(prefix):
            return _BATCH_PREFIX + file_id.removeprefix(prefix), prefix == _ERRORS
    return None


def state_of(batch: ApiBatch, status: BatchStatus | None) -> str:
    """OpenAI's name of the batch's state.

    Args:
        batch: The batch.
        status: Of its jobs; None while there are none.
    """
    if status is None:
        return _state_without_jobs(batch)
    if status.cancelled_at is None:  # a cancelled batch whose jobs somebody has had tried again is none any more
        return "completed" if status.done else "in_progress"
    if status.done and not status.counts.get(JobState.CANCELLED):  # every job had ended when the cancel came
        return "completed"
    if batch.expired_at is not None:
        return "expired" if status.done else "finalizing"
    return "cancelled" if status.done else "cancelling"


def _state_without_jobs(batch: ApiBatch) -> str:
    if batch.failed_at is not None:
        return "failed"
    if batch.cancelled_at is not None:
        return "cancelled"
    if batch.expired_at is not None:
        return "expired"
    return "validating" if batch.cancelling_at is None else "cancelling"


def batch_object(batch: ApiBatch, status: BatchStatus | None, reasoning_tokens: int | None = None) -> dict[str, Any]:
    """The batch object.

    Output files are named as soon as they have a line. Nothing has to be written when the last job ends, so a
    completed batch was finalizing for no time.

    Args:
        batch: The batch.
        status: Of its jobs; None while there are none.
        reasoning_tokens: The part of the completion tokens that was thought; None leaves the usage out.
    """
    state = state_of(batch, status)
    ended_at = None if status is None else status.finished_at
    counts: dict[JobState, int] = {} if status is None else dict(status.counts)
    failed = counts.get(JobState.FAILED, 0)
    cancelling_at = batch.cancelling_at or (None if status is None else status.cancelled_at)
    finalizing_at = {"completed": ended_at, "finalizing": batch.expired_at, "expired": batch.expired_at}.get(state)
    is_cancelled = state in ("cancelling", "cancelled")
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": None if batch.errors is None else {"object": "list", "data": list(batch.errors)},
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": state,
        "output_file_id": output_file_id(batch.id) if counts.get(JobState.SUCCEEDED) else None,
        "error_file_id": error_file_id(batch.id) if failed + counts.get(JobState.CANCELLED, 0) else None,
        "created_at": _epoch(batch.created_at),
        "in_progress_at": _epoch(batch.in_progress_at),
        "expires_at": _epoch(batch.expires_at),
        "finalizing_at": _epoch(finalizing_at),
        "completed_at": _epoch(ended_at) if state == "completed" else None,
        "failed_at": _epoch(batch.failed_at),
        "expired_at": _epoch(batch.expired_at) if state == "expired" else None,
        "cancelling_at": _epoch(cancelling_at) if is_cancelled else None,
        "cancelled_at": _epoch(ended_at or batch.cancelled_at) if state == "cancelled" else None,
        "request_counts": {
            "total": 0 if status is None else status.stored,
            "completed": counts.get(JobState.SUCCEEDED, 0),
            "failed": failed,
        },
        "usage": None if status is None or reasoning_tokens is None else _usage(status, reasoning_tokens),
        "metadata": dict(batch.metadata) or None,
    }


def _usage(status: BatchStatus, reasoning_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": status.prompt_tokens,
        "input_tokens_details": {"cached_tokens": status.cached_prompt_tokens},
        "output_tokens": status.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": status.prompt_tokens + status.completion_tokens,
    }


def _epoch(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
