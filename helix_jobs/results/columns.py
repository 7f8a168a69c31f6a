"""The columns of result files. Imports nothing, as commands name them in their help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# Columns in the order of the file -> Parquet type. Those of AS_JSON are JSON text outside jsonl.
# Trade-off: writing the prompt beside its answer doubles a file of long prompts, but makes the file a complete data
# set that needs no join with the input.
COLUMNS: Final[Mapping[str, str]] = {
    "job_id": "int64",
    "batch_id": "string",
    "line": "int64",
    "custom_id": "string",
    "choice": "int64",
    "state": "string",
    "attempts": "int64",
    "tries": "int64",
    "prompt": "string",
    "messages": "string",
    "output_text": "string",
    "reasoning_text": "string",
    "tool_calls": "string",
    "scores": "string",
    "is_valid": "bool",
    "finish_reason": "string",
    "error_code": "string",
    "error_message": "string",
    "prompt_tokens": "int64",
    "cached_prompt_tokens": "int64",
    "completion_tokens": "int64",
    "reasoning_tokens": "int64",
    "dropped_prompt_tokens": "int64",
    "cumulative_logprob": "double",
    "logprobs": "string",
    "prompt_logprobs": "string",
    "queue_seconds": "double",
    "ttft_seconds": "double",
    "decode_seconds": "double",
    "total_seconds": "double",
    "tokens_per_second": "double",
    "draft_tokens": "int64",
    "accepted_tokens": "int64",
    "acceptance_rate": "double",
    "mean_acceptance_length": "double",
    "target_model": "string",
    "draft_model": "string",
    "device": "string",
    "dtype": "string",
    "worker_id": "string",
    "from_cache": "int64",
    "queued_at": "timestamp",
    "finished_at": "timestamp",
    "metadata": "string",
}
AS_JSON: Final = ("messages", "metadata", "tool_calls", "scores", "logprobs", "prompt_logprobs")
FROM_REQUEST: Final = ("prompt", "messages", "metadata")
LOGPROBS: Final = ("logprobs", "prompt_logprobs")
