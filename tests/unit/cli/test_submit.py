from __future__ import annotations

import json
import re

import pytest
from sqlalchemy import select

from helix_jobs.cli.sampling_options import SAMPLING_FLAGS
from helix_jobs.client.client import HelixClient
from helix_jobs.client.local_worker import LocalWorker
from helix_jobs.engine.sampling_params import SAMPLING_FIELDS
from helix_jobs.errors import DatabaseUnreachableError, HelixError
from helix_jobs.storage.schema import batches, jobs


def requests_of(database, batch):
    with database.read() as c:
        return [row.request for row in c.execute(select(jobs).where(jobs.c.batch_id == batch).order_by(jobs.c.line))]


@pytest.mark.parametrize("spelling", [["submit"], []], ids=["submit FILE", "FILE"])
def test_standard_output_is_the_batch_id_alone(helix, prompts, spelling):
    result = helix(*spelling, prompts(3))
    assert result.exit_code == 0
    batch = result.stdout.strip()
    assert batch.startswith("b-")
    assert "\n" not in batch
    assert f"3 jobs from {prompts(3)} stored as batch {batch}" in result.stderr
    assert f"watch {batch}" in result.stderr
    assert "No worker is running" in result.stderr


def test_an_option_first_also_means_submit(helix, prompts):
    result = helix("--json", prompts(2))
    assert json.loads(result.stdout)["total"] == 2


def test_standard_input(helix, database):
    result = helix("-", stdin='{"prompt": "one"}\n{"prompt": "zwölf"}\n')
    assert result.exit_code == 0
    assert "2 jobs from standard input" in result.stderr
    assert [r["prompt"] for r in requests_of(database, result.stdout.strip())] == ["one", "zwölf"]


def test_json_has_stable_keys(helix, prompts):
    value = json.loads(helix("submit", prompts(3), "--json").stdout)
    assert set(value) == {"batch_id", "total", "reused", "published", "invalid", "invalid_count"}
    assert (value["total"], value["reused"], value["published"], value["invalid"]) == (3, False, 0, [])


def test_sampling_flags_are_defaults_for_lines_that_do_not_say(helix, prompts, database):
    path = prompts(lines=['{"prompt": "a"}', '{"prompt": "b", "max_tokens": 3, "temperature": 0}'])
    flags = [
        "--max-tokens",
        7,
        "--temperature",
        0.5,
        "--stop",
        "X",
        "--stop",
        "Y",
        "--stop-token-id",
        2,
        "--ignore-eos",
    ]
    batch = helix("submit", path, *flags, env={"HELIX_TOP_K": "40", "HELIX_MAX_TOKENS": "9"}).stdout.strip()
    first, second = (request["sampling"] for request in requests_of(database, batch))
    shared = {"top_k": 40, "stop": ["X", "Y"], "stop_token_ids": [2], "ignore_eos": True}
    assert first == {"max_tokens": 7, "temperature": 0.5, **shared}
    assert second == {"max_tokens": 3, **shared}


def test_flags_that_choose_among_tokens_are_defaults_too(helix, prompts, database):
    path = prompts(lines=['{"prompt": "a"}', '{"prompt": "b", "min_tokens": 0, "truncate_prompt": {"tokens": 4}}'])
    flags = ["--min-tokens", 2, "--bad-word", "x", "--bad-word", "y z", "--logit-bias", "11=-5", "--logit-bias", "3=.5"]
    flags += ["--allowed-token-id", 3, "--allowed-token-id", 11, "--include-stop-str-in-output"]
    batch = helix("submit", path, *flags, "--truncate-prompt-tokens", 9).stdout.strip()
    first, second = requests_of(database, batch)
    shared = {
        "bad_words": ["x", "y z"],
        "logit_bias": {"3": 0.5, "11": -5.0},
        "allowed_token_ids": [3, 11],
        "include_stop_str_in_output": True,
    }
    assert first["sampling"] == {"min_tokens": 2, **shared}
    assert second["sampling"] == shared
    assert [first["truncate_prompt"], second["truncate_prompt"]] == [{"keep": "end", "tokens": n} for n in (9, 4)]
    with database.read() as c:
        defaults = c.execute(select(batches.c.defaults)).scalar_one()
    assert defaults == {"min_tokens": 2, **shared, "truncate_prompt": {"keep": "end", "tokens": 9}}


@pytest.mark.parametrize(("number", "stored"), [("-1", {"keep": "end"}), ("5", {"keep": "end", "tokens": 5})])
def test_the_variable_of_truncation_is_a_default(helix, prompts, database, number, stored):
    batch = helix("submit", prompts(1), env={"HELIX_TRUNCATE_PROMPT_TOKENS": number}).stdout.strip()
    (request,) = requests_of(database, batch)
    assert request["truncate_prompt"] == stored


def test_every_sampling_field_has_a_flag():
    assert SAMPLING_FLAGS == SAMPLING_FIELDS


@pytest.mark.thorough(fast=7)
@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-tokens", "0"),
        ("--top-p", "1.5"),
        ("--temperature", "hot"),
        ("--stop-token-id", "-1"),
        ("--min-tokens", "257"),
        ("--logit-bias", "5"),
        ("--logit-bias", "5=nan"),
        ("--logit-bias", "5=101"),
        ("--logit-bias", "a=1"),
        ("--bad-word", ""),
        ("--allowed-token-id", "-1"),
        ("--truncate-prompt-tokens", "0"),
        ("--truncate-prompt-tokens", "x"),
    ],
)
def test_a_sampling_flag_out_of_range_is_wrong_usage(helix, prompts, flag, value):
    result = helix("submit", prompts(1), flag, value)
    assert result.exit_code == 2
    assert re.search(rf"{flag}\b", result.stderr)
    assert json.loads(helix("list", "--json").stdout) == []


def test_name_and_metadata_are_stored(helix, prompts, database):
    batch = helix("submit", prompts(1), "--name", "night", "--metadata", "team=a=b", "--metadata", "k=").stdout.strip()
    with database.read() as c:
        row = c.execute(select(batches).where(batches.c.id == batch)).one()
    assert (row.name, row.metadata) == ("night", {"team": "a=b", "k": ""})
    assert helix("submit", prompts(1), "--metadata", "oops").exit_code == 2


def test_the_same_idempotency_key_gives_the_same_batch(helix, prompts):
    first = helix("submit", prompts(3), "--idempotency-key", "k").stdout
    again = helix("submit", prompts(3), "--idempotency-key", "k")
    assert again.stdout == first
    assert "already" in again.stderr
    other = helix("submit", prompts(4), "--idempotency-key", "k")
    assert other.exit_code == 2
    assert other.stderr.startswith("Error: ")


BAD = ['{"prompt": "fine"}', '{"prompt": ""}', "nonsense", '{"prompt": "x", "max_token": 3}']


def test_bad_lines_are_listed_and_nothing_is_enqueued(helix, prompts):
    result = helix("submit", prompts(lines=BAD))
    assert result.exit_code == 2
    assert result.stdout == ""
    header, *rows, error = result.stderr.splitlines()
    assert header.split() == ["LINE", "FIELD", "REASON", "REMEDY"]
    assert [row.split()[0:2] for row in rows] == [["2", "prompt"], ["3", "(line)"], ["4", "max_token"]]
    assert all(len(row.split("  ")) >= 4 and row == row.rstrip() for row in rows)
    assert error.startswith("Error: 3 lines of ")
    assert "--skip-invalid" in error
    assert json.loads(helix("list", "--json").stdout) == []


def test_many_faults_of_a_kind_are_one_row_with_a_count_and_json_has_all(helix, prompts):
    lines = ['{"prompt": "a"}', *["nonsense"] * 33, '{"promt": "b"}']
    path = prompts(lines=lines)
    _, *rows, error = helix("submit", path).stderr.splitlines()
    assert [row.split()[:2] for row in rows] == [["2", "(line)"], ["35", "promt"]]
    assert "(and so in 32 more lines)" in rows[0]
    assert error.startswith("Error: 34 lines of ")
    error = json.loads(helix("submit", path, "--json").stdout)["error"]
    assert (error["type"], error["exit_code"], error["count"]) == ("InvalidInputError", 2, 34)
    assert [bad["line"] for bad in error["invalid"]] == list(range(2, 36))
    assert set(error["invalid"][0]) == {"line", "field", "reason", "remedy"}


def test_twenty_faults_are_shown_and_the_rest_counted(helix, prompts):
    path = prompts(lines=[json.dumps({"prompt": "a", f"zz{'x' * number}": 1}) for number in range(33)])
    assert "... and 13 faults more" in helix("submit", path).stderr


def test_all_faults_of_a_line_are_rows_of_it(helix, prompts):
    path = prompts(lines=['{"prompt": "", "max_token": 3, "top_p": 2, "temperature": "hot"}'])
    _, *rows, error = helix("submit", path).stderr.splitlines()
    fields = ["max_token", "prompt", "top_p", "temperature"]
    assert [row.split()[:2] for row in rows] == [["1", field] for field in fields]
    assert error.startswith("Error: 1 line of ")
    found = json.loads(helix("submit", path, "--json").stdout)["error"]["invalid"]
    assert [bad["field"] for bad in found] == fields


def test_skip_invalid_enqueues_the_good_lines_and_writes_the_bad_ones(helix, prompts):
    path = prompts(lines=BAD)
    result = helix("submit", path, "--skip-invalid")
    assert result.exit_code == 0
    assert "1 job from" in result.stderr
    assert "3 bad lines skipped" in result.stderr
    assert path.with_name("prompts.jsonl.invalid.jsonl").read_text().splitlines() == BAD[1:]


def test_a_good_file_leaves_no_side_file(helix, prompts, tmp_path):
    helix("submit", prompts(1), "--skip-invalid")
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["prompts.jsonl"]


def test_a_bad_field_cannot_drive_the_terminal(helix, prompts):
    result = helix("submit", prompts(lines=[json.dumps({"prompt": "x", "\x1b[31mred": 1})]))
    assert "\x1b" not in result.output


def test_wait_ends_with_the_batch_and_tells_failures_by_exit_code(helix, prompts, finish, monkeypatch):
    # The worker's part happens while the command looks the first time.
    status = HelixClient.status

    def status_after_work(self, batch_id):
        found = status(self, batch_id)
        if not found.done:
            finish(batch_id, succeeded=2, failed=1)
        return found

    monkeypatch.setattr(HelixClient, "status", status_after_work)
    result = helix("submit", prompts(3), "--wait")
    assert result.exit_code == 1
    assert "0 of 3 done" in result.stderr
    assert "3 jobs: 2 succeeded, 1 failed" in result.stderr
    assert "errors: prompt_too_long 1" in result.stderr
    assert result.stdout.strip().startswith("b-")
    value = json.loads(helix("submit", prompts(3), "--wait", "--json").stdout)
    assert value["counts"]["failed"] == 1


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["missing.jsonl"], "does not exist"),
        (["statsu"], "Did you mean 'status'?"),
        (["submit"], "Missing argument"),
        (["status", "b-20260101-aaaaaa"], "no batch"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_why(helix, args, told):
    result = helix(*args)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_an_empty_file_is_refused(helix, prompts):
    result = helix("submit", prompts(0))
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("HELIX_REDIS_URL", "redis://:s3cret@127.0.0.1:1/0"),
        ("HELIX_DATABASE_URL", "postgresql://u:s3cret@127.0.0.1:1/x"),
    ],
)
def test_unreachable_services_are_exit_code_3_without_the_password(helix, prompts, name, url):
    result = helix("submit", prompts(1), env={name: url})
    assert result.exit_code == 3
    assert "127.0.0.1" in result.stderr
    assert "s3cret" not in result.output
    assert "Traceback" not in result.output


def test_a_wrong_setting_is_exit_code_2(helix):
    result = helix("list", env={"HELIX_MAX_BATCH_SIZE": "many"})
    assert result.exit_code == 2
    assert "HELIX_MAX_BATCH_SIZE" in result.stderr


def test_debug_shows_the_traceback(helix):
    result = helix("status", "nope", "--log-level", "debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_local_cancels_the_batch_when_no_worker_can_be_started(helix, prompts, monkeypatch):
    """So that the same line typed again, after mending the cause, does not answer everything twice."""
    monkeypatch.setenv("HELIX_TARGET_MODEL", "/nowhere/model")
    monkeypatch.setenv("HELIX_REDIS_URL", "memory://")
    result = helix("submit", prompts(2), "--local")
    assert result.exit_code == 2
    assert "/nowhere/model" in result.stderr
    (batch,) = json.loads(helix("list", "--json").stdout)
    assert batch["state"] == "cancelled"


def test_local_cancels_the_batch_when_it_is_interrupted_before_it_looks_for_a_worker(helix, prompts, monkeypatch):
    """Else a batch stays queued of which the command's end says nothing."""

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(HelixClient, "backlog", interrupted)
    result = helix("submit", prompts(2), "--local")
    (batch,) = json.loads(helix("list", "--json").stdout)
    assert result.exit_code == 130
    assert f"No worker was started; batch {batch['id']} is cancelled." in result.stderr
    assert batch["state"] == "cancelled"


@pytest.mark.parametrize(
    ("key", "became"),
    [
        ((), ("cancelled", "is cancelled.")),
        (("--idempotency-key", "k"), ("queued", "is stored, and the same command again goes on with it.")),
    ],
)
def test_local_says_what_became_of_the_batch_when_its_log_cannot_be_written(helix, prompts, monkeypatch, key, became):
    def unusable(self):
        raise PermissionError(13, "Permission denied", "worker.log")

    monkeypatch.setattr(LocalWorker, "check", unusable)
    result = helix("submit", prompts(2), "--local", *key)
    (batch,) = json.loads(helix("list", "--json").stdout)
    assert result.exit_code != 0
    assert f"No worker was started; batch {batch['id']} {became[1]}" in result.stderr
    assert batch["state"] == became[0]


@pytest.mark.parametrize(
    ("first", "code", "told"),
    [
        (DatabaseUnreachableError("the disk has gone; put it back"), 3, "Error: the disk has gone; put it back"),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_local_tells_the_first_error_first_where_stopping_the_worker_fails_too(
    helix, prompts, monkeypatch, *, first, code, told
):
    def follow(*_, **__):
        raise first

    def leave(*_, **__):
        raise HelixError("the worker does not stop; see worker.log")

    monkeypatch.setattr(LocalWorker, "__enter__", lambda self: self)
    monkeypatch.setattr(LocalWorker, "_leave", leave)
    monkeypatch.setattr("helix_jobs.cli.local_run.follow_for_person", follow)
    result = helix("submit", prompts(2), "--local")
    assert result.exit_code == code
    *_, one, other = result.stderr.strip().splitlines()
    assert one == told
    assert other.removeprefix("Error: ") == "stopping the worker failed too: the worker does not stop; see worker.log"


def test_local_says_that_other_batches_wait_too(helix, prompts, submitted, monkeypatch):
    """Else a backlog that is worked on first looks like a worker that stands still."""

    def nobody(self):
        raise HelixError("no worker")

    # It is said before one is looked for; a real one would take seconds to answer this backlog.
    monkeypatch.setattr(LocalWorker, "__enter__", nobody)
    told = "of other batches wait too"
    assert told not in helix("submit", prompts(2), "--local").stderr
    submitted(3)
    assert f"3 jobs {told}; older and more urgent ones go first" in helix("submit", prompts(2), "--local").stderr
