from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from helix_jobs.client.client import HelixClient
from helix_jobs.storage import claims, publishing, workers
from helix_jobs.storage.records import NewWorker

BATCH_KEYS = {
    *("id", "name", "source", "state", "created_at", "started_at", "finished_at", "cancelled_at", "total", "counts"),
    *("paused_at", "paused_why", "brakes", "deadline", "forecast"),
    *("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "draft_tokens", "accepted_tokens"),
    *("acceptance_rate", "tokens_per_second", "errors", "cut_off", "refused", "from_cache"),
}


def test_status_of_a_batch_for_people(helix, submitted, finish):
    batch = submitted(4)
    finish(batch, succeeded=2, failed=1)
    result = helix("status", batch)
    assert result.exit_code == 0
    facts = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert facts["Batch"] == f"{batch}  running"
    assert facts["Jobs"] == "3 of 4 done (75 %), 2 succeeded, 1 failed, 1 queued"
    assert facts["Errors"] == "prompt_too_long 1"
    assert facts["Tokens"].startswith("20 written, 10 read, ")
    assert facts["Drafts"] == "75 % accepted (12 of 16)"


def test_status_says_when_a_batch_is_done(helix, submitted, finish):
    batch = submitted(60)
    finish(batch, succeeded=20)  # one after the other, each in a second
    shown = helix("status", batch).stdout
    assert re.search(r"^Forecast +done about \S", shown, re.MULTILINE)
    told = json.loads(helix("status", batch, "--json").stdout)["forecast"]
    assert told["seconds"]["median"] == pytest.approx(40.0, rel=0.3)
    assert told["seconds"]["low"] < told["seconds"]["median"] < told["seconds"]["high"]
    assert told["done_at"]["low"] <= told["done_at"]["high"]
    assert told["jobs_in_front"] == 0


def test_prompt_tokens_that_jobs_shared_are_shown(helix, submitted, finish):
    batch = submitted(3)
    finish(batch, succeeded=3, cached_prompt_tokens=4)
    assert "30 written, 15 read (12 shared), " in helix("status", batch).stdout
    value = json.loads(helix("status", batch, "--json").stdout)
    assert (value["prompt_tokens"], value["cached_prompt_tokens"]) == (15, 12)


def test_status_of_a_batch_for_programs(helix, submitted, finish):
    batch = submitted(4)
    finish(batch, succeeded=2, failed=1)
    value = json.loads(helix("status", batch, "--json").stdout)
    assert set(value) == BATCH_KEYS
    assert value["counts"] == {"queued": 1, "running": 0, "succeeded": 2, "failed": 1, "cancelled": 0}
    assert (value["id"], value["state"], value["total"]) == (batch, "running", 4)
    assert (value["acceptance_rate"], value["errors"]) == (0.75, {"prompt_too_long": 1})
    assert datetime.fromisoformat(value["created_at"]).utcoffset() == timedelta(0)
    assert value["finished_at"] is None


def test_overview_shows_workers_and_newest_batches(helix, submitted, finish):
    assert "No worker is running. Start one with: " in helix("status").stdout
    batch = submitted(2)
    finish(batch, succeeded=2)
    result = helix("status")
    assert "Worker  demo with draft int8, cpu on box (pid 42), 8 slots\n" in result.stdout
    assert batch in result.stdout
    value = json.loads(helix("status", "--json").stdout)
    assert set(value) == {"workers", "resting", "resting_workers", "batches"}
    assert value["resting"] == value["resting_workers"] == []
    assert [worker["pid"] for worker in value["workers"]] == [42]
    assert [set(found) for found in value["batches"]] == [BATCH_KEYS]


def test_a_worker_that_shows_no_life_is_said_to_be_lost(helix, submitted, database):
    batch = submitted(1)
    with database.write() as c:
        long_ago = datetime.now(UTC) - timedelta(minutes=5)
        new = NewWorker(id="w", hostname="box", pid=1, device="cpu", target_model="demo", draft_model=None, slots=1)
        workers.register_worker(c, new, long_ago)
    assert "silent for 5 min" in helix("status").stdout
    assert "The worker does not respond" in helix("status", batch).stdout


def test_list_newest_first_and_limited(helix, submitted):
    assert "No batches yet" in helix("list").stderr
    batches = [submitted(1) for _ in range(3)]
    value = json.loads(helix("list", "--json").stdout)
    assert [found["id"] for found in value] == batches[::-1]
    header, *rows = helix("list", "--limit", 2).stdout.splitlines()
    assert header.split() == ["BATCH", "STATE", "DONE", "FAILED", "CREATED", "NAME"]
    assert [row.split()[0] for row in rows] == batches[:0:-1]


def test_json_errors_are_one_object_on_standard_output(helix):
    result = helix("cancel", "nope", "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert (error["type"], error["exit_code"]) == ("NotFoundError", 2)
    assert result.stderr == f"Error: {error['message']}\n"


def test_db_upgrade_and_current(helix):
    assert json.loads(helix("db", "current", "--json").stdout)["current"] is None
    head = json.loads(helix("db", "upgrade", "--json").stdout)["after"]
    now = json.loads(helix("db", "current", "--json").stdout)
    assert now["current"] == now["head"] == head
    assert f"at revision {head} already" in helix("db", "upgrade").stdout
    assert f"is at revision {head}; this version needs {head}" in helix("db", "current").stdout


@pytest.mark.postgres
def test_an_empty_postgres_is_refused_with_the_command_that_mends_it(helix, prompts, empty_postgres_url, monkeypatch):
    monkeypatch.setenv("HELIX_DATABASE_URL", empty_postgres_url)
    refused = helix("submit", prompts(1))
    assert refused.exit_code == 3
    assert "helix db upgrade" in refused.stderr
    value = json.loads(helix("db", "upgrade", "--json").stdout)
    assert (value["before"], value["after"] is None) == (None, False)
    assert helix("submit", prompts(1)).exit_code == 0


def test_job_numbers_are_listed_for_cancel(helix, submitted, finish, database):
    batch = submitted(5)
    finish(batch, succeeded=1, failed=1)
    with database.write() as c:
        third = publishing.publishable(c, 1)[0].id
        claims.claim(c, third, worker_id="w1", now=datetime.now(UTC))
    lines = helix("status", batch, "--jobs").stdout.rpartition("\n\n")[2].splitlines()
    assert lines[0].split() == ["JOB", "LINE", "STATE", "CUSTOM_ID"]
    assert [line.split()[1:3] for line in lines[1:]] == [
        ["3", "running"],
        ["2", "failed"],
        ["4", "queued"],
        ["5", "queued"],
    ]
    assert lines[1].split()[0] == str(third)
    assert lines[2].endswith("prompt_too_long")
    value = json.loads(helix("status", batch, "--jobs", "--json").stdout)
    assert set(value) == BATCH_KEYS | {"jobs"}
    assert [(job["line"], job["state"]) for job in value["jobs"]] == [
        (3, "running"),
        (2, "failed"),
        (4, "queued"),
        (5, "queued"),
    ]
    for job in value["jobs"]:
        cancelled = 0 if job["state"] == "failed" else 1
        assert json.loads(helix("cancel", job["job_id"], "--json").stdout)["cancelled"] == cancelled
    assert helix("status", "--jobs").exit_code == 2
    assert "status BATCH --jobs" in helix("cancel", 999).stderr


def test_every_job_answered_is_said(helix, submitted, finish):
    batch = submitted(1)
    finish(batch, succeeded=1)
    assert helix("status", batch, "--jobs").stdout.endswith("\nEvery job has its answer.\n")


def test_jobs_that_run_are_no_sign_of_a_worker(helix, submitted, database, monkeypatch):
    """A dead worker's jobs stay `running` until another worker takes them over; who waits must be told to start one."""
    batch = submitted(2)
    long_ago = datetime.now(UTC) - timedelta(days=1)
    with database.write() as c:
        new = NewWorker(id="w1", hostname="box", pid=42, device="cpu", target_model="demo", draft_model=None, slots=8)
        workers.register_worker(c, new, long_ago)
        assert claims.claim(c, publishing.publishable(c, 1)[0].id, worker_id="w1", now=long_ago) is not None

    def one_look(self, batch_id, on_update):
        found = self.status(batch_id)
        on_update(found)
        return found

    monkeypatch.setattr(HelixClient, "wait", one_look)
    told = helix("watch", batch).stdout
    assert "0 of 2 done, 1 running. The worker does not respond. Start one with: " in told
