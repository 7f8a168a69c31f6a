"""Batches over HTTP, and states of their jobs, for tests of what follows from them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from helix_jobs.storage.api_records import ApiBatch
from helix_jobs.storage.records import BatchStatus
from helix_jobs.storage.states import JobState, derive_batch_state

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def api_batch(**changes: Any) -> ApiBatch:
    values: dict[str, Any] = {
        "id": "batch_1",
        "owner": "local",
        "input_file_id": "file-1",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {},
        "created_at": NOW,
        "expires_at": NOW + DAY,
    }
    return ApiBatch(**{**values, **changes})


def accepted(**changes: Any) -> ApiBatch:
    return api_batch(batch_id="b-1", in_progress_at=NOW, **changes)


def job_states(
    *, cancelled_at: datetime | None = None, finished_at: datetime | None = None, **counts: int
) -> BatchStatus:
    """The status of a sealed batch with so many jobs in each state."""
    by_state = {state: counts.get(state.value, 0) for state in JobState}
    return BatchStatus(
        id="b-1",
        name=None,
        source=None,
        created_at=NOW,
        cancelled_at=cancelled_at,
        total=sum(by_state.values()),
        state=derive_batch_state(by_state, sealed=True, cancelled=cancelled_at is not None),
        counts=by_state,
        error_counts={},
        started_at=NOW,
        finished_at=finished_at,
        read_at=NOW,
        prompt_tokens=7,
        completion_tokens=5,
        cached_prompt_tokens=2,
    )
