"""The totals of a run that drafted: what a report draws."""

from __future__ import annotations

from typing import Any

from helix_jobs.storage.records import RunTotals


def totals(**changes: Any) -> RunTotals:
    values: dict[str, Any] = {
        "steps": 40,
        "jobs_finished": 4,
        "completion_tokens": 400,
        "draft_tokens": 250,
        "accepted_tokens": 200,
        "mean_batch_size": 4.0,
        "mean_depth": 2.5,
        "schedule_seconds": 0.1,
        "draft_seconds": 1.0,
        "target_seconds": 5.0,
        "verify_seconds": 0.5,
    }
    return RunTotals(**{**values, **changes})
