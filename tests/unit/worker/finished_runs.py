"""The result of one request, and the run it was in."""

from __future__ import annotations

from helix_jobs.engine.protocol import EngineCounters
from helix_jobs.engine.request import FinishReason, GenerationResult
from helix_jobs.worker.engine_run import Run

RESULT = GenerationResult(
    request_id="1.1",
    output_text="text",
    output_token_ids=(1, 2, 3, 4),
    finish_reason=FinishReason.STOP,
    error=None,
    prompt_tokens=3,
    cached_prompt_tokens=1,
    queue_seconds=0.5,
    ttft_seconds=0.25,
    decode_seconds=1.0,
    total_seconds=2.0,
    draft_tokens=4,
    accepted_tokens=3,
    target_steps=2,
)

RUN = Run(EngineCounters(), 0.0)
