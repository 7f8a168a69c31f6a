"""Bulk sequences that make room for requests over HTTP, in a real worker with the real engine and a real model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select

from helix_jobs.storage.schema import runs
from tests.integration.http_server import asking, serving
from tests.worker_box import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.worker_box import Box

pytestmark = pytest.mark.redis

SLOTS = 2
PROMPTS = tuple(f"Write a story about the number {number}." for number in range(3))
LENGTH: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True}
# More than the displacements that one sequence takes.
REQUESTS = 6
LOADING_SECONDS = 300


def answers(box: Box, batch: str) -> list[str | None]:
    with box.client() as client:
        return [result.output_text for result in client.results(batch)]


def preemptions(box: Box) -> int:
    with box.read() as c:
        return int(c.execute(select(func.coalesce(func.sum(runs.c.preemptions), 0))).scalar_one())


@pytest.mark.thorough
def test_bulk_work_that_makes_room_is_answered_as_it_is_without(embedded_box: Box, demo_home: Path) -> None:
    box = embedded_box
    box.settings = replace(
        box.settings,
        engine="helix",
        device="cpu",
        dtype="float32",
        compile="off",
        draft_model="none",  # what was answered before would be drafted, and be answered before anybody asks
        max_batch_size=SLOTS,
    )
    (box.settings.make_home() / "models").symlink_to(demo_home / "models")
    worker = box.start_worker(fresh=True, ready=False)
    wait_until(lambda: "Ready." in worker.log or worker.process.poll() is not None, lambda: worker.log, LOADING_SECONDS)
    undisturbed = box.submit(*PROMPTS, **LENGTH)
    box.wait_states(undisturbed, LOADING_SECONDS, succeeded=len(PROMPTS))
    assert preemptions(box) == 0

    disturbed = box.submit(*PROMPTS, **LENGTH)
    with serving(box) as address, asking(address) as http:
        wait_until(lambda: box.states(disturbed).get("running", 0) >= SLOTS, lambda: str(box.states(disturbed)))
        texts = set()
        for _ in range(REQUESTS):
            answer = http.post("/v1/completions", json={"prompt": "The capital of France is", "max_tokens": 4})
            assert answer.status_code == 200, answer.text
            texts.add(answer.json()["choices"][0]["text"])
        assert len(texts) == 1
    box.wait_states(disturbed, LOADING_SECONDS, succeeded=len(PROMPTS))
    wait_until(lambda: preemptions(box) > 0, "the run ends and says what it did")
    assert answers(box, disturbed) == answers(box, undisturbed)
    assert [row.attempts for row in box.rows(disturbed)] == [1] * len(PROMPTS)
