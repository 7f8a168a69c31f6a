"""What a server has to do with a batch that is due."""

from __future__ import annotations

import pytest

from helix_jobs.api.batch_duty import Duty, duty_of, removal_at
from tests.unit.api.api_values import DAY, HOUR, NOW, accepted, api_batch, job_states

LATER = NOW + 2 * DAY
RUNS, ENDED = job_states(queued=2, succeeded=1), job_states(succeeded=3, finished_at=NOW + HOUR)
HALF_CANCELLED = job_states(queued=1, cancelled=1, cancelled_at=NOW)


@pytest.mark.parametrize(
    ("batch", "status", "now", "expected"),
    [
        (api_batch(), None, NOW, (Duty.VALIDATE, None)),
        (api_batch(), None, LATER, (Duty.LAPSE, None)),
        (api_batch(cancelling_at=NOW), None, LATER, (Duty.WITHDRAW, None)),
        (api_batch(failed_at=NOW), None, LATER, (Duty.REST, None)),
        (api_batch(cancelling_at=NOW, cancelled_at=NOW), None, NOW, (Duty.REST, None)),
        (accepted(), None, NOW, (Duty.REST, None)),
        (accepted(), RUNS, NOW, (Duty.REST, NOW + DAY)),
        (accepted(), RUNS, LATER, (Duty.EXPIRE, None)),
        (accepted(expired_at=NOW), RUNS, LATER, (Duty.REST, None)),
        (accepted(), HALF_CANCELLED, NOW, (Duty.FINISH_CANCEL, None)),
        (accepted(expired_at=NOW), HALF_CANCELLED, LATER, (Duty.FINISH_CANCEL, None)),
        (accepted(), ENDED, NOW, (Duty.REST, None)),
        (accepted(), ENDED, LATER, (Duty.REST, None)),
        # The output may expire long before the window ends.
        (accepted(output_expires_after=3600), RUNS, NOW, (Duty.REST, NOW + HOUR)),
        (accepted(output_expires_after=3600, expired_at=NOW), RUNS, LATER, (Duty.REST, LATER + HOUR)),
        (accepted(output_expires_after=3600), ENDED, NOW + HOUR, (Duty.REST, NOW + 2 * HOUR)),
        (accepted(output_expires_after=3600), ENDED, NOW + 2 * HOUR, (Duty.REMOVE, None)),
    ],
)
def test_duties(batch, status, now, expected):
    assert duty_of(batch, status, now) == expected


def test_output_is_said_to_expire_when_the_batch_is_removed():
    kept, expiring = accepted(), accepted(output_expires_after=3600)
    assert removal_at(expiring, ENDED, NOW) == NOW + 2 * HOUR
    assert removal_at(expiring, RUNS, NOW) is None, "the end is not known yet"
    assert removal_at(kept, ENDED, NOW) is None
