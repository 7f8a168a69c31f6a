"""Submissions that do not come to their end: interrupted, killed, removed or cancelled, and waited for all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from helix_jobs import HelixClient
from helix_jobs.errors import InputError, UnfinishedSubmissionError
from helix_jobs.new_job import NewJob
from helix_jobs.storage import batches
from helix_jobs.storage.database import Database
from helix_jobs.storage.states import BatchState, JobState
from tests.integration.client_helpers import batch_count, prompts, rows, work
from tests.worker_box import ROOT

if TYPE_CHECKING:
    from helix_jobs.settings import Settings
    from helix_jobs.storage.records import BatchStatus


def test_an_interrupted_submission_without_a_key_leaves_nothing(client: HelixClient, helix: Settings):
    def interrupted():
        yield from prompts(1500)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.submit(interrupted())
    assert (rows(helix), batch_count(helix)) == ([], 0)


KILLED = """
import os, signal, sys
from pathlib import Path
from helix_jobs import HelixClient
from helix_jobs.client import submission
from helix_jobs.settings import Settings

submission.CHUNK_ROWS = 100

def doomed():
    for number in range(260):
        if number == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield {"prompt": f"prompt {number}", "custom_id": f"id-{number}"}
    os.kill(os.getpid(), signal.SIGKILL)

HelixClient(Settings(home=Path(sys.argv[1]), redis_url=None, database_url=sys.argv[2])).submit(
    doomed(), idempotency_key="k"
)
"""


@pytest.mark.thorough(fast=1)
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("killed_at", [0, 100, 101, 260])
def test_a_killed_submission_is_finished_by_the_next(
    client: HelixClient, helix: Settings, killed_at: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("helix_jobs.client.submission.CHUNK_ROWS", 100)
    client.list()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(helix.home), helix.database_url, str(killed_at)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=60,
    )
    assert killed.returncode == -9
    left = client.list()
    assert [(status.state, status.total, status.stored) for status in left] == [
        (BatchState.SUBMITTING, None, killed_at // 100 * 100)
    ]
    assert work(helix) == 0  # nothing of it can run yet
    submission = client.submit(prompts(260), idempotency_key="k")
    assert (submission.batch_id, submission.total, submission.reused) == (left[0].id, 260, False)
    assert [row.line for row in rows(helix)] == list(range(1, 261))
    assert work(helix) == 260


def test_a_batch_removed_meanwhile_is_told(client: HelixClient, helix: Settings):
    def removed():
        yield from prompts(1001)
        database = Database(helix.database_url)
        with database.write() as c:
            assert batches.delete_batch(c, client.list()[0].id)
        database.dispose()
        yield from prompts(0)

    with pytest.raises(InputError, match="was removed while it was being submitted"):
        client.submit(removed())


@pytest.mark.thorough(fast=2)
@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("stored", [500, 1001, 2500])
def test_a_living_submission_whose_batch_is_cancelled_fails_whole(
    client: HelixClient, helix: Settings, key: str | None, stored: int
):
    """Cancelled before its first chunk, after it, and before the last; with the client of somebody else."""

    def cancelled():
        for number, item in enumerate(prompts(2600)):
            if number == stored:
                with HelixClient(helix) as other:
                    assert other.cancel(other.list()[0].id) == 0
            yield item

    with pytest.raises(InputError, match="someone cancelled it"):
        client.submit(cancelled(), idempotency_key=key)
    assert (rows(helix), batch_count(helix)) == ([], 0)
    assert client.submit(prompts(2600), idempotency_key=key).total == 2600


@pytest.fixture
def unfinished(client: HelixClient, monkeypatch: pytest.MonkeyPatch) -> str:
    """A batch whose submission died after five lines."""

    def dies():
        yield from prompts(5)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("helix_jobs.client.submission.CHUNK_ROWS", 5)
        with pytest.raises(KeyboardInterrupt):
            client.submit(dies(), idempotency_key="k")
    return client.list()[0].id


def test_waiting_for_a_submission_that_died_ends_with_what_to_do(client: HelixClient, unfinished: str):
    assert not client.wait(unfinished, timeout=0.1, poll=0.01).done
    client.time_limits = replace(client.time_limits, submitter_silence=0.05)
    with pytest.raises(UnfinishedSubmissionError, match=r"same idempotency key.*helix cancel"):
        client.wait(unfinished, timeout=30, poll=0.01)
    with pytest.raises(UnfinishedSubmissionError):
        client.retry(unfinished)
    assert client.submit(prompts(5), idempotency_key="k").batch_id == unfinished


def test_waiting_for_a_submission_that_goes_on_goes_on(client: HelixClient, helix: Settings, unfinished: str):
    """Without any patience at all: a line comes before each look."""
    client.time_limits = replace(client.time_limits, submitter_silence=0.0)
    submitter = Database(helix.database_url)
    with HelixClient(helix) as other:

        def go_on(status: BatchStatus) -> None:
            lines_now = status.stored + 1
            if status.total is None and lines_now < 12:
                with submitter.write() as c:
                    new = [NewJob(line=lines_now, custom_id=None, request={"prompt": "more"})]
                    batches.insert_jobs(c, unfinished, new, datetime.now(UTC))
            elif status.total is None:
                with submitter.write() as c:
                    batches.seal_batch(c, unfinished, status.stored, "digest")
                other.cancel(unfinished)

        final = client.wait(unfinished, poll=0.001, on_update=go_on)
    submitter.dispose()
    assert final.counts[JobState.CANCELLED] == 11


def test_cancelling_an_unfinished_submission_removes_it(client: HelixClient, helix: Settings, unfinished: str):
    assert client.discard(unfinished)
    assert not client.discard(unfinished)
    assert (rows(helix), batch_count(helix)) == ([], 0)
    complete = client.submit(prompts(2)).batch_id
    assert not client.discard(complete)
    assert client.cancel(complete) == 2
