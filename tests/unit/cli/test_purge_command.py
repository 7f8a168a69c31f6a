"""``helix purge``: what a person types, is asked and is told."""

from __future__ import annotations

import json
import os
import time

import pytest

from helix_jobs.cli import purge as command
from helix_jobs.client import purge as rows
from helix_jobs.client.purge import Outcome, Purged
from helix_jobs.local_users import LocalUsers
from helix_jobs.settings import Settings


@pytest.fixture
def ended(submitted, finish):
    """``ended(2, failed=1)`` is a batch that has ended."""

    def make(succeeded=2, *, failed=0):
        batch = submitted(succeeded + failed)
        finish(batch, succeeded=succeeded, failed=failed)
        return batch

    return make


@pytest.fixture
def someone_types(monkeypatch):
    monkeypatch.setattr(command, "_someone_types", lambda: True)


def test_the_states_are_the_outcomes():
    assert tuple(Outcome) == command.STATES


def test_a_batch_by_its_id(helix, ended):
    batch, other = ended(2, failed=1), ended(1)
    result = helix("purge", batch)
    assert result.exit_code == 0
    assert result.stdout.startswith("Removed: 1 batch with 3 jobs and 2 answers (")
    assert [listed["id"] for listed in json.loads(helix("list", "--json").stdout)] == [other]
    assert helix("status", batch).exit_code == helix("results", batch).exit_code == 2
    assert helix("purge", batch).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--older-than AGE"),
        (("--state", "failed"), "--state belongs to --older-than"),
        (("--older-than", "30"), "30d"),
        (("--older-than", "1y"), "30d"),
        (("--older-than", "-1d"), "30d"),
        (("b-nothing",), "there is no batch 'b-nothing'"),
    ],
)
def test_what_cannot_be_meant(helix, arguments, said):
    result = helix("purge", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_batch_that_waits_is_refused_and_nothing_goes(helix, submitted, ended):
    old, waiting = ended(1), submitted(2)
    result = helix("purge", old, waiting)
    assert result.exit_code == 2
    assert f"helix cancel {waiting}" in result.stderr
    assert helix("status", old).exit_code == 0


def test_a_dry_run_removes_nothing(helix, ended):
    batch = ended(2)
    result = helix("purge", "--older-than", "0d", "--dry-run", "--json")
    said = json.loads(result.stdout)
    assert (said["dry_run"], said["batches"], said["jobs"], said["batch_ids"]) == (True, 1, 2, [batch])
    assert said["bytes"] > 0
    assert helix("status", batch).exit_code == 0
    assert "Would be removed: 1 batch" in helix("purge", batch, "--dry-run").stdout


def test_by_state(helix, ended):
    good, bad = ended(1), ended(1, failed=1)
    assert json.loads(helix("purge", "--older-than", "0d", "--state", "failed", "--json").stdout)["batch_ids"] == [bad]
    assert helix("status", good).exit_code == 0


@pytest.mark.usefixtures("someone_types")
def test_a_terminal_is_asked(helix, ended):
    batch = ended(1)
    result = helix("purge", "--older-than", "0d", stdin="n\n")
    assert (result.exit_code, result.stdout) == (0, "")
    assert batch in result.stderr
    assert "Nothing is removed." in result.stderr
    assert helix("status", batch).exit_code == 0
    assert "Removed: 1 batch" in helix("purge", batch, stdin="y\n").stdout
    assert "Removed: 1 batch" in helix("purge", ended(1), "--yes").stdout


def test_an_interrupted_one_says_how_far_it_came(helix, ended, monkeypatch):
    monkeypatch.setattr(rows, "ROWS", 1)
    batch = ended(3)
    real, calls = rows.purging.purge_lines, []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(rows.purging, "purge_lines", interrupt)
    result = helix("purge", batch, "--json")
    assert result.exit_code == 130
    said = json.loads(result.stdout)
    assert (said["interrupted"], said["jobs"], said["batches"]) == (True, 2, 0)
    monkeypatch.setattr(rows.purging, "purge_lines", real)
    assert json.loads(helix("list", "--json").stdout) == []
    done = helix("purge", "--older-than", "9w")
    assert "Removed: 1 batch with 1 job" in done.stdout


def test_old_files_go_with_an_age_alone(helix, ended):
    home = Settings.from_environment().make_home()
    batch = ended(1)
    names = ["worker.log", "native/kernels-a.so", "profiles/costs-a.json", "broker/dump.rdb", "broker/broker.log"]
    kept = ["models/demo/config.json", "broker/users.lock", "notes.txt"]
    for name in (*names, *kept, "native/kernels-new.so"):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
        if "new" not in name:
            os.utime(path, (time.time() - 40 * 86_400,) * 2)
    assert json.loads(helix("purge", "--older-than", "30d", "--state", "failed", "--json").stdout)["files"] == []
    said = json.loads(helix("purge", "--older-than", "30d", "--dry-run", "--json").stdout)
    assert (len(said["files"]), said["file_bytes"]) == (5, 5000)
    assert all((home / name).exists() for name in names)
    result = helix("purge", "--older-than", "30d")
    assert "Removed: 5 files under HELIX_HOME (5.0 kB)." in result.stdout
    assert [name for name in names if (home / name).exists()] == []
    assert all((home / name).exists() for name in (*kept, "native/kernels-new.so"))
    assert helix("status", batch).exit_code == 0


def test_the_log_of_a_local_worker_that_runs_is_kept(helix, ended):
    home = Settings.from_environment().make_home()
    ended(1)
    for name in ("worker.log", "worker.log.1"):
        (home / name).write_bytes(b"x")
    worker = LocalUsers(home).worker
    assert worker.acquire()
    helix("purge", "--older-than", "0d", "--yes")
    assert [path.name for path in home.glob("worker.log*")] == ["worker.log"]
    worker.release()
    helix("purge", "--older-than", "0d", "--yes")
    assert not [*home.glob("worker.log*")]


def test_links_under_the_home_are_not_followed(helix, tmp_path):
    home = Settings.from_environment().make_home()
    precious = tmp_path / "precious.json"
    precious.write_text("{}")
    os.utime(precious, (0, 0))
    (home / "profiles").mkdir()
    (home / "profiles" / "a.json").symlink_to(precious)
    assert helix("purge", "--older-than", "1d").exit_code == 0
    assert precious.exists()
    assert (home / "profiles" / "a.json").is_symlink()


def test_nothing_there_is_fine(helix):
    result = helix("purge", "--older-than", "30d")
    assert (result.exit_code, result.stdout) == (
        0,
        "Removed: 0 batches with 0 jobs and 0 answers (0 bytes of content).\n",
    )


def test_the_file_of_sqlite_gets_smaller(helix, submitted, finish, database):
    batch = submitted(60)
    finish(batch, succeeded=60, text="x" * 50_000)
    said = json.loads(helix("purge", batch, "--json").stdout)
    assert said["given_back"] > 2_000_000
    assert said["kept_free_bytes"] == 0
    assert Purged(**{name: said[name] for name in ("batches", "jobs", "results", "bytes")}).jobs == 60


def test_an_older_file_is_rewritten_on_demand(helix, submitted, finish, database):
    batch = submitted(60)
    finish(batch, succeeded=60, text="x" * 50_000)
    database.dispose()
    import sqlite3

    connection = sqlite3.connect(database.sqlite_file, isolation_level=None)
    connection.executescript("PRAGMA auto_vacuum=NONE; VACUUM")
    connection.close()
    said = json.loads(helix("purge", batch, "--json").stdout)
    assert said["given_back"] == 0
    assert said["kept_free_bytes"] > 2_000_000
    said = json.loads(helix("purge", "--older-than", "9w", "--vacuum", "--json").stdout)
    assert said["given_back"] > 2_000_000
    assert said["kept_free_bytes"] == 0
    assert database.sqlite_file.stat().st_size < 1_000_000
