"""Commands that change a batch: pause, resume, cancel, retry, brakes and deadlines, and what a dead submission left."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from helix_jobs.new_job import NewJob
from helix_jobs.storage import braking, publishing
from helix_jobs.storage.batches import create_batch, insert_jobs
from helix_jobs.storage.records import NewBatch
from helix_jobs.time_limits import TimeLimits


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
