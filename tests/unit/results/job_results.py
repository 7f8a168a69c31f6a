"""Results of jobs as the storage returns them, and their export."""

from __future__ import annotations

import io
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

from helix_jobs.results.export import export_results
from helix_jobs.storage.records import JobResult
from helix_jobs.storage.states import JobState

T0 = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

NASTY = '=1+1,"quoted"\r\nline\u2028sep \N{GRINNING FACE} \t;end'

SUCCEEDED = JobResult(
    job_id=7,
    batch_id="b-1",
    line=3,
    custom_id="mine",
    state=JobState.SUCCEEDED,
    priority=0,
    attempts=1,
    request={"prompt": "Say, \n hi", "sampling": {}, "seed": 2**64 - 1, "metadata": {"k": "\N{GREEK SMALL LETTER PI}"}},
    queued_at=T0,
    claimed_at=T0,
    finished_at=T0,
    error_code=None,
    error_message=None,
    output_text=NASTY,
    finish_reason="stop",
    prompt_tokens=5,
    cached_prompt_tokens=2,
    completion_tokens=4,
    queue_seconds=0.5,
    ttft_seconds=0.25,
    decode_seconds=1.5,
    total_seconds=1.75,
    tokens_per_second=2.5,
    draft_tokens=6,
    accepted_tokens=3,
    acceptance_rate=0.5,
    mean_acceptance_length=2.0,
    target_model="demo",
    draft_model="int8",
    device="cpu",
    dtype="float32",
    worker_id="w",
    run_id=1,
)

CHAT = replace(
    SUCCEEDED,
    job_id=8,
    line=4,
    custom_id=None,
    request={"messages": [{"role": "user", "content": "Hi"}], "sampling": {}, "seed": 1, "metadata": {}},
    finish_reason="length",
)

_BLANK = {
    field.name: None
    for field in fields(JobResult)
    if field.name not in ("job_id", "batch_id", "line", "custom_id", "state", "priority", "attempts", "request")
}
FAILED = replace(CHAT, **{**_BLANK, "queued_at": T0}, job_id=9, line=5, state=JobState.FAILED)
FAILED = replace(FAILED, finished_at=T0, error_code="prompt_too_long", error_message="the prompt has 9000 tokens")

CANCELLED = replace(FAILED, job_id=10, line=6, state=JobState.CANCELLED, error_code=None, error_message=None)

ALL = [SUCCEEDED, CHAT, FAILED, CANCELLED]


def export(fmt: str, results=ALL) -> bytes:
    stream = io.BytesIO()
    assert export_results(iter(results), stream, fmt) == len(results)
    return stream.getvalue()


def loglikelihood(body: dict[str, Any], num_context: int) -> tuple[float, bool]:
    """What lm-evaluation-harness takes from an answer to echo, logprobs 1 and max_tokens 1."""
    (choice,) = body["choices"]
    wanted = slice(num_context, -1)
    logprobs = choice["logprobs"]["token_logprobs"][wanted]
    best = [max(top.values()) for top in choice["logprobs"]["top_logprobs"][wanted]]
    return sum(logprobs), logprobs == best
