"""A deadline from the client to a running worker: the batch goes up, and is done in time beside bulk work."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.worker_box import prompts, wait_until

if TYPE_CHECKING:
    from tests.worker_box import Box

WORDS = 20


@pytest.mark.thorough
def test_a_batch_that_would_be_late_overtakes_and_is_in_time(box: Box) -> None:
    worker = box.start_worker(fake_step_seconds="0.05")  # an answer takes a second, of which four run beside each other
    bulk = box.submit(*prompts(2_000, WORDS))  # more than eight minutes of work
    deadline = datetime.now(UTC) + timedelta(minutes=2)
    lines = [{"prompt": f"pressing {prompt}"} for prompt in prompts(40, WORDS)]
    with box.client() as client:
        pressing = client.submit(lines, deadline=deadline).batch_id
        relaxed = client.submit(lines, deadline=deadline + timedelta(hours=5), cache=False).batch_id
    wait_until(
        lambda: box.states(pressing).get("succeeded") == 40, lambda: f"{box.states(pressing)}: {worker.log}", 120.0
    )
    assert datetime.now(UTC) < deadline
    assert {row.priority for row in box.rows(pressing)} == {1}, "one step is enough to be in front"
    assert box.states(bulk)["queued"] > 1_000
    assert box.states(relaxed) == {"queued": 40}
    assert f"batch {pressing} would miss its deadline" in worker.log
    assert relaxed not in worker.log
