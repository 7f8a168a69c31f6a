"""Idempotency keys: the same content is the same batch, other content a conflict, also at the same time."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING

import pytest

from helix_jobs import HelixClient, SamplingParams
from helix_jobs.errors import IdempotencyConflictError
from tests.integration.client_helpers import lines, prompts, rows

if TYPE_CHECKING:
    from helix_jobs.settings import Settings


def test_the_same_key_and_content_is_the_same_batch(client: HelixClient, helix: Settings):
    first = client.submit(prompts(1200), idempotency_key="k")
    again = client.submit(io.BytesIO(lines(1200)), idempotency_key="k")
    assert (again.batch_id, again.total, again.reused) == (first.batch_id, 1200, True)
    assert len(rows(helix)) == 1200
    assert client.submit(prompts(1200), idempotency_key="other").batch_id != first.batch_id


CHANGES = {
    "shorter": lambda items: items[:-1],
    "longer": lambda items: [*items, {"prompt": "more"}],
    "prompt": lambda items: [*items[:-1], {**items[-1], "prompt": "other"}],
    "priority": lambda items: [*items[:-1], {**items[-1], "priority": 1}],
    "sampling": lambda items: [{**item, "max_tokens": 3} for item in items],
    "order": lambda items: items[::-1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_key_of_a_batch_with_other_content_is_a_conflict(client: HelixClient, helix: Settings, change: str):
    client.submit(prompts(5), idempotency_key="k")
    check_conflict(client, helix, change)
    assert client.submit(prompts(5), idempotency_key="k").reused


# A longer input is how every interrupted submission goes on.
@pytest.mark.parametrize("change", [name for name in CHANGES if name != "longer"])
def test_the_key_of_an_interrupted_submission_of_other_content_is_a_conflict(
    client: HelixClient, helix: Settings, monkeypatch: pytest.MonkeyPatch, change: str
):
    def interrupted():
        yield from prompts(5)
        raise KeyboardInterrupt

    monkeypatch.setattr("helix_jobs.client.submission.CHUNK_ROWS", 5)
    with pytest.raises(KeyboardInterrupt):
        client.submit(interrupted(), idempotency_key="k")
    check_conflict(client, helix, change)
    again = client.submit(prompts(5), idempotency_key="k")
    assert (again.total, again.reused) == (5, False)


def check_conflict(client: HelixClient, helix: Settings, change: str) -> None:
    """The changed input is refused and leaves the five stored lines as they were."""
    before = [(row.line, row.custom_id, row.request) for row in rows(helix)]
    assert len(before) == 5
    with pytest.raises(IdempotencyConflictError, match=r"b-\d{8}-\w{6}"):
        client.submit(CHANGES[change](prompts(5)), idempotency_key="k")
    assert [(row.line, row.custom_id, row.request) for row in rows(helix)] == before


def test_another_default_is_other_content(client: HelixClient):
    client.submit(prompts(2), idempotency_key="k", defaults=SamplingParams(max_tokens=5))
    with pytest.raises(IdempotencyConflictError):
        client.submit(prompts(2), idempotency_key="k", defaults=SamplingParams(max_tokens=6))


@pytest.mark.thorough(fast=1)
def test_two_submissions_with_one_key_at_once_make_one_batch(helix: Settings):
    submissions = []
    gate = threading.Barrier(2)

    def submit() -> None:
        with HelixClient(helix) as client:
            gate.wait(10)
            submissions.append(client.submit(prompts(3000), idempotency_key="k"))

    threads = [threading.Thread(target=submit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({submission.batch_id for submission in submissions}) == 1
    assert [submission.total for submission in submissions] == [3000, 3000]
    assert [row.line for row in rows(helix)] == list(range(1, 3001))


def test_a_slower_submission_cannot_add_to_a_batch_a_faster_one_sealed(client: HelixClient, helix: Settings):
    """Both read the same first chunk; the faster input ends there, the slower goes on."""

    def slower():
        yield from prompts(1000)
        yield {"prompt": "the chunk is stored now", "custom_id": "next"}
        assert client.submit(prompts(1000), idempotency_key="k").total == 1000
        yield {"prompt": "too late"}

    with HelixClient(helix) as other, pytest.raises(IdempotencyConflictError):
        other.submit(slower(), idempotency_key="k")
    assert len(rows(helix)) == 1000
    assert client.list()[0].total == 1000
