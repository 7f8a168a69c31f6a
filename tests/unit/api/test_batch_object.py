"""OpenAI's batch object, from what was asked for and what became of the jobs; openai-python's types read it."""

from __future__ import annotations

import openai.types
import pytest

from helix_jobs.api.batch_object import batch_object, batch_of_file, error_file_id, output_file_id, state_of
from tests.unit.api.api_values import HOUR, NOW, accepted, api_batch, job_states

ENDED = NOW + HOUR


@pytest.mark.parametrize(
    ("batch", "status", "state"),
    [
        (api_batch(), None, "validating"),
        (api_batch(cancelling_at=NOW), None, "cancelling"),
        (api_batch(cancelling_at=NOW, cancelled_at=NOW), None, "cancelled"),
        (api_batch(failed_at=NOW, errors=[]), None, "failed"),
        (api_batch(expired_at=NOW), None, "expired"),
        (accepted(), job_states(queued=3), "in_progress"),
        (accepted(), job_states(running=1, succeeded=2), "in_progress"),
        (accepted(), job_states(succeeded=2, failed=1, finished_at=ENDED), "completed"),
        (accepted(cancelling_at=NOW), job_states(queued=1, cancelled=2, cancelled_at=NOW), "cancelling"),
        (accepted(cancelling_at=NOW), job_states(cancelled=3, cancelled_at=NOW, finished_at=ENDED), "cancelled"),
        # `helix cancel` and `helix retry` act on the jobs alone.
        (accepted(), job_states(cancelled=3, cancelled_at=NOW, finished_at=ENDED), "cancelled"),
        (accepted(cancelling_at=NOW), job_states(queued=3), "in_progress"),
        (accepted(expired_at=NOW), job_states(queued=1, cancelled=2, cancelled_at=NOW), "finalizing"),
        (accepted(expired_at=NOW), job_states(cancelled=3, cancelled_at=NOW, finished_at=ENDED), "expired"),
        (accepted(expired_at=NOW), job_states(succeeded=3, finished_at=ENDED), "completed"),
        # The last job ended before the cancel, or the end of the window, could cancel it.
        (
            accepted(cancelling_at=ENDED),
            job_states(succeeded=2, failed=1, cancelled_at=ENDED, finished_at=ENDED),
            "completed",
        ),
        (accepted(expired_at=ENDED), job_states(succeeded=3, cancelled_at=ENDED, finished_at=ENDED), "completed"),
    ],
)
def test_states(batch, status, state):
    assert state_of(batch, status) == state
    shown = openai.types.Batch.model_validate(batch_object(batch, status, 0))
    assert shown.status == state
    moments = {"cancelled": shown.cancelled_at, "completed": shown.completed_at, "expired": shown.expired_at}
    moments |= {"failed": shown.failed_at, "cancelling": shown.cancelling_at}
    assert moments.pop(state, 1) is not None, "the moment of the state is given"
    if state not in ("cancelled", "cancelling"):
        assert shown.cancelling_at is None
    assert not [name for name in ("cancelled", "completed", "expired", "failed") if moments.get(name) is not None]


def test_counts_files_and_usage():
    status = job_states(queued=4, succeeded=3, failed=2, cancelled=1)
    shown = openai.types.Batch.model_validate(batch_object(accepted(metadata={"a": "b"}), status, 1))
    assert shown.request_counts is not None
    assert (shown.request_counts.total, shown.request_counts.completed, shown.request_counts.failed) == (10, 3, 2)
    assert shown.output_file_id == output_file_id("batch_1")
    assert shown.error_file_id == error_file_id("batch_1")
    assert shown.usage is not None
    assert (shown.usage.input_tokens, shown.usage.output_tokens, shown.usage.total_tokens) == (7, 5, 12)
    assert shown.usage.input_tokens_details.cached_tokens == 2
    assert shown.usage.output_tokens_details.reasoning_tokens == 1
    assert shown.metadata == {"a": "b"}


def test_files_are_named_once_they_have_a_line():
    shown = batch_object(accepted(), job_states(queued=1))
    assert (shown["output_file_id"], shown["error_file_id"], shown["usage"]) == (None, None, None)
    assert batch_object(accepted(), job_states(queued=1, cancelled=1))["error_file_id"] is not None


def test_ids_of_output_files_lead_back():
    assert batch_of_file(output_file_id("batch_abc")) == ("batch_abc", False)
    assert batch_of_file(error_file_id("batch_abc")) == ("batch_abc", True)
    assert batch_of_file("file-0123456789abcdef01234567") is None


def test_errors_stand_in_a_list():
    faults = [{"code": "invalid_line", "message": "m", "param": "url", "line": 2}]
    shown = openai.types.Batch.model_validate(batch_object(api_batch(failed_at=NOW, errors=faults), None))
    assert shown.errors is not None
    assert shown.errors.data is not None
    assert (shown.errors.data[0].line, shown.errors.data[0].param) == (2, "url")
