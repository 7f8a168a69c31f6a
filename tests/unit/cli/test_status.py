from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import click
import pytest

from helix_jobs.cli.follow import follow_for_person
from helix_jobs.client.client import HelixClient
from helix_jobs.new_job import NewJob
from helix_jobs.storage import braking, claims, publishing, workers
from helix_jobs.storage.batches import create_batch, insert_jobs
from helix_jobs.storage.records import NewBatch, NewWorker
from helix_jobs.time_limits import TimeLimits

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
    assert set(value) == {"workers", "resting", "batches"}
    assert value["resting"] == []
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


@pytest.mark.parametrize(("failed", "exit_code"), [(0, 0), (1, 1)])
def test_watch_ends_with_a_summary_and_the_exit_code(helix, submitted, finish, failed, exit_code):
    batch = submitted(2)
    finish(batch, succeeded=2 - failed, failed=failed)
    result = helix("watch", batch)
    assert result.exit_code == exit_code
    assert f"2 jobs: {2 - failed} succeeded" in result.stdout
    assert (f"results {batch} --failed" in result.stdout) == bool(failed)
    last = json.loads(helix("watch", batch, "--json").stdout.splitlines()[-1])
    assert (last["state"], set(last)) == ("done", BATCH_KEYS)


def test_watch_json_prints_a_line_at_each_change_only(helix, submitted, finish, monkeypatch):
    batch = submitted(2)
    status, looks = HelixClient.status, []

    def look(self, batch_id):
        found = status(self, batch_id)
        looks.append(found)
        if len(looks) in {3, 5}:
            finish(batch, succeeded=1)
        return found

    monkeypatch.setattr(HelixClient, "status", look)
    lines = [json.loads(line) for line in helix("watch", batch, "--json").stdout.splitlines()]
    assert [line["counts"]["succeeded"] for line in lines] == [0, 1, 2]


def test_interrupted_watching_leaves_the_batch_and_says_so(helix, submitted, monkeypatch):
    batch = submitted(1)

    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(HelixClient, "wait", interrupt)
    result = helix("watch", batch)
    assert result.exit_code == 130
    assert f"batch {batch} goes on" in result.stdout
    assert f"cancel {batch}" in result.stdout
    assert json.loads(helix("status", batch, "--json").stdout)["state"] == "queued"


def test_an_interrupt_anywhere_is_exit_code_130(helix, monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(HelixClient, "list", interrupt)
    result = helix("list")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "\nInterrupted.\n")


def test_a_local_worker_that_ends_ends_the_wait(helix, submitted):
    """follow_for_person asks the worker at each look and passes its error on."""
    from io import StringIO

    from rich.console import Console

    from helix_jobs.errors import HelixError

    class Gone:
        started = True

        def check(self):
            raise HelixError("the local worker ended")

    batch = submitted(1)
    with HelixClient() as client, pytest.raises(HelixError, match="ended"):
        follow_for_person(client, batch, Console(file=StringIO()), worker=Gone())


def test_pause_a_batch_and_let_it_go_on(helix, submitted):
    batch = submitted(3)
    assert "3 jobs held back" in helix("pause", batch).stdout
    assert json.loads(helix("status", batch, "--json").stdout)["state"] == "paused"
    assert "paused" in helix("list").stdout
    assert "Nothing to pause" in helix("pause", batch).stdout
    assert json.loads(helix("resume", batch, "--json").stdout) == {"id": batch, "resumed": 3}
    assert json.loads(helix("status", batch, "--json").stdout)["paused_at"] is None
    assert "Nothing to resume" in helix("resume", batch).stdout
    assert json.loads(helix("pause", batch, "--json").stdout) == {"id": batch, "paused": 3}
    assert "3 jobs may begin" in helix("resume", batch).stdout
    assert helix("pause", "b-20260101-aaaaaa").exit_code == 2


def test_a_batch_that_a_brake_paused_says_why_and_what_to_do(helix, prompts, finish, database):
    result = helix("submit", prompts(5), "--max-tokens-total", 30, "--max-hours", 8, "--stop-if-failing", "5%")
    batch = result.stdout.strip()
    brakes = {"max_tokens_total": 30, "max_hours": 8.0, "stop_if_failing": 0.05}
    assert json.loads(helix("status", batch, "--json").stdout)["brakes"] == brakes
    facts = dict(line.split(maxsplit=1) for line in helix("status", batch).stdout.splitlines() if " " in line)
    assert facts["Brakes"] == "30 tokens, 8 h 00 min, 5 % failing"
    finish(batch, succeeded=2)
    assert database.transact(lambda c: braking.brake(c, batch, datetime.now(UTC))) is not None
    why = "30 tokens computed; the limit is 30 (--max-tokens-total)"
    shown = helix("status", batch).stdout
    assert f": {why}\n" in shown
    assert f"Paused: {why}. Let it go on with: " in shown
    assert json.loads(helix("status", batch, "--json").stdout)["paused_why"] == why
    assert "3 jobs may begin" in helix("resume", batch).stdout
    assert json.loads(helix("status", batch, "--json").stdout)["paused_why"] is None
    assert "no brakes any more" in helix("resume", batch, "--release-brakes").stdout
    assert json.loads(helix("status", batch, "--json").stdout)["brakes"] is None


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("--stop-if-failing", "5", "write it as in 5%"),
        ("--max-hours", "0", "x>0"),
        ("--max-hours", "99999", "up to 10,000"),
        ("--max-tokens-total", "0", "x>=1"),
    ],
)
def test_a_brake_that_makes_no_sense_is_refused(helix, prompts, option, value, remedy):
    result = helix("submit", prompts(1), option, value)
    assert result.exit_code == 2
    assert remedy in result.stderr


def test_cancel_a_job_then_the_batch_then_retry(helix, submitted, database):
    batch = submitted(3)
    with database.read() as c:
        job = publishing.publishable(c, 1)[0].id
    assert helix("cancel", job).stdout == "1 job cancelled.\n"
    assert json.loads(helix("cancel", batch, "--json").stdout) == {"id": batch, "cancelled": 2, "removed": False}
    facts = helix("status", batch).stdout
    assert f"{batch}  cancelled" in facts
    assert "0 of 3 done (0 %), 3 cancelled" in facts
    assert f"{batch}  cancelled   0/3" in helix("list").stdout
    assert f"Nothing to cancel: batch {batch} had ended already." in helix("cancel", batch).stdout
    assert helix("watch", batch).exit_code == 1
    assert json.loads(helix("retry", batch, "--json").stdout) == {"id": batch, "queued": 3}
    assert "Nothing to retry" in helix("retry", batch).stdout
    assert helix("cancel", 999).exit_code == 2
    assert helix("retry", "b-20260101-aaaaaa").exit_code == 2


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


@pytest.fixture
def unfinished(helix, database):
    """A batch whose submission died after two lines."""
    helix("list")
    with database.write() as c:
        new = NewBatch(id="b-20260101-abcdef", created_at=datetime.now(UTC), idempotency_key="k")
        create_batch(c, new)
        lines = [NewJob(line=line, custom_id=None, request={"prompt": "x"}) for line in (1, 2)]
        insert_jobs(c, new.id, lines, datetime.now(UTC))
    return new.id


def test_a_submission_that_died_is_told_with_the_remedy(helix, unfinished):
    told = helix("status", unfinished).stdout
    assert f"{unfinished}  submitting" in told
    assert "2 stored so far, none accepted yet" in told
    assert "same idempotency key" in told
    assert f"cancel {unfinished}" in told
    assert "No worker" not in told, "a worker would not help"
    for listing in (helix("list"), helix("status")):
        assert f"status {unfinished}" in listing.stdout
    assert "status b-" not in helix("list", "--json").stdout
    watched = helix("watch", unfinished, time_limits=TimeLimits(submitter_silence=0.0))
    assert watched.exit_code == 2
    assert "2 lines stored, still being submitted. " in watched.stdout
    assert "same idempotency key" in watched.stderr
    watched = helix("watch", unfinished, "--json", time_limits=TimeLimits(submitter_silence=0.0))
    assert json.loads(watched.stdout.splitlines()[-1])["error"]["exit_code"] == 2
    retried = helix("retry", unfinished)
    assert retried.exit_code == 2
    assert "has not finished" in retried.stderr


def test_cancel_removes_what_a_dead_submission_left(helix, unfinished):
    result = helix("cancel", unfinished)
    assert (result.exit_code, result.stdout) == (
        0,
        f"Batch {unfinished} is removed: its submission had not finished, so no job of it was accepted.\n",
    )
    assert helix("cancel", unfinished).exit_code == 2
    assert json.loads(helix("list", "--json").stdout) == []


def test_cancel_of_a_dead_submission_for_programs(helix, unfinished):
    value = json.loads(helix("cancel", unfinished, "--json").stdout)
    assert value == {"id": unfinished, "cancelled": 0, "removed": True}


def test_a_pipe_hears_something_at_least_every_half_minute(helix, submitted, finish):
    """Ten seconds between lines that differ, thirty between equal ones."""
    from io import StringIO

    from rich.console import Console

    from helix_jobs.cli.follow import _Follower

    batch = submitted(3)
    moment = 0.0
    out = StringIO()
    heard = []
    with HelixClient() as client:
        follower = _Follower(client, Console(file=out, width=200), None, lambda: moment)
        for moment in (0.0, 9.0, 11.0, 29.0, 30.0, 59.0, 60.0, 65.0, 71.0):
            if moment == 65.0:
                finish(batch, failed=1)
            before = out.getvalue()
            with click.Context(click.Command("helix"), info_name="helix"):
                follower._print(client.status(batch))
            if out.getvalue() != before:
                heard.append((moment, out.getvalue().splitlines()[-1].partition(" running")[0]))
    assert heard == [
        (0.0, "0 of 3 done, 0"),
        (30.0, "0 of 3 done, 0"),
        (60.0, "0 of 3 done, 0"),
        (71.0, "1 of 3 done, 0"),
    ]


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


def test_a_deadline_is_stored_shown_and_told_where_it_slips(helix, home, prompts, finish):
    soon = (datetime.now().astimezone() + timedelta(minutes=10)).strftime("%Y-%m-%dT%H:%M")
    batch = helix("submit", prompts(60), "--deadline", soon).stdout.strip()
    told = json.loads(helix("status", batch, "--json").stdout)
    assert datetime.fromisoformat(told["deadline"]) == datetime.fromisoformat(soon).astimezone()
    finish(batch, succeeded=20)
    told = json.loads(helix("status", batch, "--json").stdout)["forecast"]
    assert (told["by_deadline"], told["would_help"]) == (1.0, None)
    assert "; by " in helix("status", batch).stdout
    finish(batch, succeeded=20, total_seconds=600.0)
    shown = helix("status", batch).stdout
    assert "will probably be missed. What would keep it: " in " ".join(shown.split())
    told = json.loads(helix("status", batch, "--json").stdout)["forecast"]
    assert told["by_deadline"] < 0.5
    assert told["would_help"]["fewer_rows"] > 0


def test_a_deadline_in_the_past_is_refused_and_nothing_is_stored(helix, home, prompts):
    for deadline, said in (("2020-01-01T07:00", "lies in the past"), ("soon", "is no time; give one such as 07:00")):
        result = helix("submit", prompts(1), "--deadline", deadline, "--json")
        assert result.exit_code == 2
        assert said in json.loads(result.stdout)["error"]["message"]
    assert json.loads(helix("list", "--json").stdout) == []
