"""HelixClient after a submission: waiting, results, cancelling, listing; and what importing it costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from helix_jobs import HelixClient
from helix_jobs.client.purge import Purged
from helix_jobs.errors import NotEndedError, NotFoundError
from helix_jobs.results.export import export_results
from helix_jobs.storage.states import BatchState, JobState
from tests.integration.client_helpers import prompts, rows, work
from tests.worker_box import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.client.purge import PurgePlan
    from helix_jobs.settings import Settings

NO_TIME = timedelta(0)


def test_jobs_are_found_without_sql(client: HelixClient, helix: Settings):
    batch_id = client.submit(prompts(4)).batch_id
    work(helix, limit=2, fail_lines=frozenset({2}))
    ids = [row.id for row in rows(helix)]
    found = [(job.job_id, job.line, job.custom_id, job.state) for job in client.jobs(batch_id)]
    assert found == [
        (ids[2], 3, "id-2", "queued"),
        (ids[3], 4, "id-3", "queued"),
        (ids[0], 1, "id-0", "succeeded"),
        (ids[1], 2, "id-1", "failed"),
    ]
    assert [job.error_code for job in client.jobs(batch_id, JobState.FAILED)] == ["prompt_too_long"]
    assert client.backlog() == 2
    assert [result.line for result in client.results(batch_id, only_failed=True)] == [2]
    with pytest.raises(NotFoundError, match="b-nope"):
        client.jobs("b-nope")


def test_what_has_ended_is_purged(client: HelixClient, helix: Settings):
    first, second = (client.submit(prompts(3)).batch_id for _ in range(2))
    work(helix, fail_lines=frozenset({2}), limit=6)
    with pytest.raises(ValueError, match="broken"):
        client.purge(older_than=NO_TIME, only=["broken"])
    seen: list[PurgePlan] = []
    assert client.purge(first, agree=lambda plan: bool(seen.append(plan))) == Purged()
    assert [batch.id for batch in seen[0].batches] == [first]
    said = client.purge(first, dry_run=True)
    assert (said.batches, said.jobs, said.results) == (1, 3, 2)
    assert client.status(first).done
    steps: list[Purged] = []
    done = client.purge(first, on_step=steps.append)
    assert (done.batches, done.jobs, done.bytes) == (1, 3, said.bytes)
    assert steps[-1] == done
    with pytest.raises(NotFoundError):
        client.purge(first)
    waiting = client.submit(prompts(2)).batch_id
    with pytest.raises(NotEndedError):
        client.purge(second, waiting)
    assert client.purge(older_than=timedelta(hours=1)).batches == 0
    assert client.purge(older_than=NO_TIME, only=["succeeded"]).batches == 0
    assert client.purge(older_than=NO_TIME, only=["failed"]).jobs == 3
    assert [status.id for status in client.list()] == [waiting]


def test_wait_returns_at_the_end_and_reports_on_the_way(client: HelixClient, helix: Settings):
    batch_id = client.submit(prompts(4)).batch_id
    updates = []
    unfinished = client.wait(batch_id, timeout=0, on_update=updates.append)
    assert not unfinished.done
    worker = threading.Timer(0.1, work, [helix], {"fail_lines": frozenset({2})})
    worker.start()
    final = client.wait(batch_id, timeout=30, poll=0.05, on_update=updates.append)
    worker.join()
    assert final.done
    assert updates[-1] is final
    assert (final.counts[JobState.SUCCEEDED], final.counts[JobState.FAILED]) == (3, 1)
    assert final.error_counts == {"prompt_too_long": 1}


@pytest.mark.thorough(fast=1)
def test_results_can_be_read_while_the_batch_runs(client: HelixClient, helix: Settings):
    batch_id = client.submit(prompts(700)).batch_id
    assert list(client.results(batch_id)) == []
    work(helix, limit=600, fail_lines=frozenset({3}))
    answered = list(client.results(batch_id))
    assert [result.line for result in answered] == [line for line in range(1, 601) if line != 3]
    assert answered[-1].output_text == "answer to line 600"
    ended = list(client.results(batch_id, include_failed=True))
    assert (ended[2].state, ended[2].error_code) == (JobState.FAILED, "prompt_too_long")
    assert {result.line for result in client.results(batch_id, order="completion")} == {r.line for r in answered}


def test_cancel_and_retry(client: HelixClient, helix: Settings):
    batch_id = client.submit(prompts(5)).batch_id
    work(helix, limit=2, fail_lines=frozenset({1}))
    job_id = next(row.id for row in rows(helix) if row.line == 5)
    assert client.cancel(job_id) == 1
    assert client.cancel(str(job_id)) == 0
    assert client.cancel(batch_id) == 2
    assert client.status(batch_id).state is BatchState.CANCELLED
    assert client.retry(batch_id) == 4
    work(helix)
    status = client.status(batch_id)
    assert status.state is BatchState.DONE
    assert status.counts[JobState.SUCCEEDED] == 5


def test_unknown_ids_are_told_where_they_are_given(client: HelixClient):
    for ask in (client.status, client.results, client.cancel, client.retry, client.wait):
        with pytest.raises(NotFoundError, match="b-nope"):
            ask("b-nope")
    with pytest.raises(NotFoundError, match="123"):
        client.cancel(123)


def test_list_shows_the_newest_first_and_workers_are_seen(client: HelixClient, helix: Settings):
    ids = [client.submit(prompts(1)).batch_id for _ in range(3)]
    assert [status.id for status in client.list(2)] == ids[:0:-1]
    assert list(client.live_workers()) == []
    work(helix)
    assert [worker.id for worker in client.live_workers()] == ["w1"]


def test_results_of_both_databases_export_in_every_format(client: HelixClient, helix: Settings, tmp_path: Path):
    batch_id = client.submit(prompts(20, metadata={"k": "v"})).batch_id
    work(helix, fail_lines=frozenset({4}))
    for fmt in ("jsonl", "csv", "parquet", "openai"):
        assert export_results(client.results(batch_id, include_failed=True), tmp_path / fmt, fmt) == 20
    first = json.loads((tmp_path / "jsonl").read_text().splitlines()[0])
    assert (first["custom_id"], first["prompt"], first["output_text"]) == ("id-0", "prompt 0", "answer to line 1")
    assert datetime.fromisoformat(first["finished_at"]).tzinfo is not None


def test_the_client_can_be_used_again_after_close(helix: Settings):
    client = HelixClient(helix)
    batch_id = client.submit(prompts(1)).batch_id
    client.close()
    assert client.status(batch_id).total == 1
    client.close()


HEAVY = ("torch", "transformers", "celery", "kombu", "sqlalchemy", "redis")


IMPORTED = f"print([name for name in {HEAVY} if name in sys.modules])"


def test_importing_the_client_imports_neither_torch_nor_the_database():
    code = (
        "import sys; from helix_jobs import HelixClient, SamplingParams; HelixClient(); SamplingParams(); " + IMPORTED
    )
    assert run_python(code) == "[]"


def test_submitting_without_a_broker_imports_only_the_database(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from helix_jobs import HelixClient;"
        "from helix_jobs.settings import Settings; home = Path(sys.argv[1]);"
        "settings = Settings(home=home, redis_url=None, database_url=f'sqlite:///{home}/h.db');"
        "HelixClient(settings).submit([{'prompt': 'a'}]); " + IMPORTED
    )
    assert run_python(code, str(tmp_path)) == "['sqlalchemy']"


def run_python(code: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
