"""helix db check: each kind of row that cannot be is found, named, and put right; a sound database is left alone."""

from __future__ import annotations

import json
import sqlite3
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from sqlalchemy import select, text

from helix_jobs.cli.group import cli
from helix_jobs.errors import UnreadableRowError
from helix_jobs.storage import claims, publishing, status, workers
from helix_jobs.storage.check import check_rows
from helix_jobs.storage.results import iter_results
from helix_jobs.storage.schema import batches, jobs, results
from helix_jobs.worker.counters import WorkerCounters
from helix_jobs.worker.watchdog import Action, Watchdog
from tests.store_helpers import (
    check_counters,
    counts,
    ended,
    get_job,
    must_take,
    now,
    register,
    result_row,
    stored_batch,
    succeed,
    take,
)

MANY_DIGITS = '{"prompt": "p", "seed": ' + "9" * 10_000 + "}"


def run(database, *statements, **parameters):
    with database.write() as c:
        for statement in statements:
            c.execute(text(statement), parameters)


@pytest.fixture
def stored(database):
    """A batch of six jobs: one succeeded, one runs, the others wait."""
    batch_id, ids = stored_batch(database, 6)
    register(database, "w1")
    succeed(database, must_take(database, ids[0]))
    must_take(database, ids[1])
    return batch_id, ids


def found(database, *, repair=False):
    return {finding.what: finding for finding in check_rows(database, repair=repair)}


def assert_sound(database):
    assert check_rows(database, repair=False) == []
    with database.read() as c:
        for batch_id in status.batch_ids(c):
            check_counters(c, batch_id)
            assert list(iter_results(c, batch_id, include_failed=True)) is not None


def test_a_sound_database_is_left_alone(database, stored):
    assert check_rows(database, repair=False) == []
    assert check_rows(database, repair=True) == []
    assert counts(database, stored[0]) == {"queued": 4, "running": 1, "succeeded": 1}


IMPOSSIBLE = {
    "jobs in no known state": ("UPDATE jobs SET state = 'lost' WHERE id = :waiting", {"failed": 1}),
    "jobs that succeeded and have no result row": (
        "UPDATE jobs SET state = 'succeeded', finished_at = queued_at WHERE id = :waiting",
        {"failed": 1},
    ),
    "jobs that succeeded and have more or fewer answers than they asked for": (
        "UPDATE results SET choice = 1 WHERE job_id = :ended",
        {"failed": 1},
    ),
    "failed jobs without a known error code": (
        "UPDATE jobs SET state = 'failed', finished_at = queued_at, error_code = 'who knows' WHERE id = :waiting",
        {"failed": 1},
    ),
    "jobs with an error code that did not fail": (
        "UPDATE jobs SET error_code = 'deadline' WHERE id = :waiting",
        {"queued": 4},
    ),
    "ended jobs without an end": ("UPDATE jobs SET finished_at = NULL WHERE id = :ended", {"succeeded": 1}),
    "jobs with an end that have not ended": (
        "UPDATE jobs SET finished_at = queued_at WHERE id = :waiting",
        {"queued": 4},
    ),
    "jobs whose lease cannot be raised": ("UPDATE jobs SET lease = 2147483647 WHERE id = :waiting", {"queued": 4}),
    "jobs with impossible attempts": ("UPDATE jobs SET attempts = -5 WHERE id = :waiting", {"queued": 4}),
    "jobs with impossible tries": ("UPDATE jobs SET tries = -1 WHERE id = :waiting", {"queued": 4}),
    "jobs that were not accepted and have no result row": (
        "UPDATE jobs SET state = 'failed', finished_at = queued_at, error_code = 'not_accepted' WHERE id = :waiting",
        {"failed": 1},
    ),
    "running jobs that no worker holds": ("UPDATE jobs SET worker_id = NULL WHERE id = :running", {"queued": 5}),
    "result rows of jobs that have no answer": (
        (
            "INSERT INTO results (job_id, output_text, finish_reason, prompt_tokens, cached_prompt_tokens, "
            "completion_tokens, queue_seconds, decode_seconds, total_seconds, draft_tokens, accepted_tokens, "
            "target_model, device, dtype, worker_id, created_at) "
            "SELECT :waiting, output_text, finish_reason, prompt_tokens, "
            "cached_prompt_tokens, completion_tokens, queue_seconds, decode_seconds, total_seconds, draft_tokens, "
            "accepted_tokens, target_model, device, dtype, worker_id, created_at FROM results WHERE job_id = :ended"
        ),
        {"queued": 4},
    ),
}


@pytest.mark.thorough(fast=6)
@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_each_impossible_row_is_found_named_and_repaired(database, stored, what):
    statement, after = IMPOSSIBLE[what]
    batch_id, ids = stored
    names = {"ended": ids[0], "running": ids[1], "waiting": ids[2]}
    run(database, statement, **{name: value for name, value in names.items() if f":{name}" in statement})
    before = found(database)
    assert before[what].count == 1
    assert before[what].examples[0] in {str(job_id) for job_id in ids}
    assert before[what].done is None
    assert found(database)[what] == before[what], "looking changes nothing"
    assert found(database, repair=True)[what].done is not None
    assert_sound(database)
    assert after.items() <= counts(database, batch_id).items()


@pytest.mark.thorough(fast=8)
@pytest.mark.parametrize(
    ("request_", "numbers", "sound"),
    [
        ({"prompt": "p", "sampling": {"n": 3}}, [0, 1, 2], True),
        ({"prompt": "p", "sampling": {"n": 3}}, [0, 1], False),
        ({"prompt": "p", "sampling": {"n": 2}}, [0, 1, 2], False),
        ({"prompt": "p", "sampling": {"n": 2}}, [0, 2], False),
        ({"prompt": "p", "sampling": {}}, [0], True),
        ({"prompt": "p", "sampling": {}}, [0, 1], False),
        ({"prompt": '\x00 \\u \\\x00 "', "sampling": {"n": 2}}, [0, 1], True),
        ({"prompt": '\x00 \\u \\\x00 "', "sampling": {"n": 2}}, [0], False),
        ({}, [0, 1], True),
        ({"sampling": 3}, [0, 1], True),
    ],
)
def test_the_answers_of_a_job_are_as_many_as_it_asked_for(database, request_, numbers, sound):
    register(database, "w1")
    batch_id, ids = stored_batch(database, 2)
    with database.write() as c:
        c.execute(jobs.update().where(jobs.c.id == ids[0]).values(request=request_))
    claimed = must_take(database, ids[0])
    with database.write() as c:
        claims.finish_succeeded(c, ended(claimed), [result_row(choice=number) for number in numbers], now())
    if sound:
        assert_sound(database)
        return
    what = "jobs that succeeded and have more or fewer answers than they asked for"
    assert found(database)[what].examples == (str(ids[0]),)
    assert found(database, repair=True)[what].done == "failed"
    assert counts(database, batch_id) == {"failed": 1, "queued": 1}
    assert_sound(database)


def test_a_request_that_cannot_be_read_costs_no_job_its_answers(sqlite_database):
    _, ids = stored_batch(sqlite_database, 1)
    register(sqlite_database, "w1")
    succeed(sqlite_database, must_take(sqlite_database, ids[0]))
    run(sqlite_database, "UPDATE jobs SET request = 'no json' WHERE id = :id", id=ids[0])
    assert found(sqlite_database, repair=True).keys() == {"values of jobs.request that cannot be read"}
    assert_sound(sqlite_database)


def test_an_answer_that_was_kept_although_it_was_refused_is_sound(database, stored):
    ids = stored[1]
    with database.write() as c:
        claimed = claims.claim(c, ids[2], worker_id="w1", now=now())
        claims.finish_not_accepted(c, ended(claimed), [result_row()], "too short", now())
    assert_sound(database)
    run(database, "DELETE FROM batch_counters")
    assert found(database, repair=True).keys() == {"batches whose counters differ from their jobs"}
    assert_sound(database)


def test_counters_are_counted_anew(database, stored):
    batch_id, ids = stored
    run(database, "DELETE FROM jobs WHERE id IN (:a, :b)", a=ids[4], b=ids[5])
    with database.read() as c:
        assert publishing.backlog(c) == 4, "the counters still speak of them"
        assert publishing.any_waits(c)
    run(database, "DELETE FROM jobs WHERE id IN (:a, :b)", a=ids[2], b=ids[3])
    with database.read() as c:
        assert publishing.backlog(c) > 0
        assert not publishing.any_waits(c), "no worker is to end for what counters say"
    what = "batches whose counters differ from their jobs"
    assert found(database)[what].examples == (batch_id,)
    assert found(database, repair=True)[what].done == "counted anew"
    assert_sound(database)
    with database.read() as c:
        assert publishing.backlog(c) == 0


def test_no_worker_ends_for_what_counters_say(database):
    _, ids = stored_batch(database, 3)
    acted = []
    watchdog = Watchdog(
        database,
        SimpleNamespace(depth=lambda: 0, close=lambda: None),
        SimpleNamespace(counters=WorkerCounters(), idle_slots=4, stuck=0, kept_waiting=0),
        reconnect=lambda: acted.append("reconnect"),
        give_up=acted.append,
        window=0.0,
    )
    assert [watchdog.check() for _ in range(2)] == [Action.NONE, Action.RECONNECT], "jobs wait and none comes"
    run(database, "DELETE FROM jobs WHERE id IN (:a, :b, :c)", a=ids[0], b=ids[1], c=ids[2])
    assert [watchdog.check() for _ in range(4)] == [Action.NONE] * 4
    assert acted == ["reconnect"]


def test_leases_of_workers_that_are_gone_are_freed_and_others_kept(database, stored):
    batch_id, ids = stored
    register(database, "w2", "w3")
    must_take(database, ids[2], "w2")
    must_take(database, ids[3], "nobody knows")
    with database.write() as c:
        workers.stop_worker(c, "w2", now())
    assert found(database, repair=True)["running jobs that no worker holds"].count == 2
    assert counts(database, batch_id) == {"queued": 4, "running": 1, "succeeded": 1}
    assert take(database, ids[2], "w3") is not None
    assert_sound(database)


UNREADABLE = {
    ("jobs", "request"): "UPDATE jobs SET request = :bad WHERE id = :waiting",
    ("batches", "metadata"): "UPDATE batches SET metadata = :bad",
}


@pytest.mark.parametrize("place", UNREADABLE)
def test_json_that_cannot_be_read(database, stored, place):
    _, ids = stored
    statement = UNREADABLE[place].replace(":bad", "CAST(:bad AS json)" if database.dialect == "postgresql" else ":bad")
    run(database, statement, bad=MANY_DIGITS, **({"waiting": ids[2]} if "waiting" in statement else {}))
    what = f"values of {place[0]}.{place[1]} that cannot be read"
    assert found(database)[what].count == 1
    assert found(database, repair=True)[what].done == "made readable"
    assert_sound(database)
    with database.read() as c:
        column = {"jobs": jobs.c.request, "batches": batches.c.metadata}[place[0]]
        assert {} in [row[0] for row in c.execute(select(column))]


def test_what_sqlite_lets_in(sqlite_database):
    batch_id, ids = stored_batch(sqlite_database, 4)
    register(sqlite_database, "w1")
    for job_id in ids[:2]:
        succeed(sqlite_database, must_take(sqlite_database, job_id))
    raw = sqlite3.connect(sqlite_database.sqlite_file)
    raw.executescript(
        f"""
        UPDATE results SET output_text = CAST(x'616263ff646566' AS TEXT) WHERE job_id = {ids[0]};
        UPDATE jobs SET finished_at = 'yesterday' WHERE id = {ids[1]};
        UPDATE jobs SET request = 'no {{ json', queued_at = 'never', custom_id = CAST(x'ff' AS TEXT)
            WHERE id = {ids[2]};
        UPDATE jobs SET lease = 9223372036854775807 WHERE id = {ids[3]};
        UPDATE workers SET heartbeat_at = '';
        INSERT INTO jobs (batch_id, line, request, state, queued_at) VALUES ('gone', 1, '{{}}', 'queued', '2026-01-01');
        INSERT INTO batch_counters (batch_id, writer, outcome, jobs) VALUES ('gone', 'w', 'stored', 1);
        """  # noqa: S608  (a test's own rows)
    )
    raw.close()
    findings = found(sqlite_database)
    assert {
        "values of results.output_text that cannot be read",
        "values of jobs.finished_at that cannot be read",
        "values of jobs.request that cannot be read",
        "values of jobs.queued_at that cannot be read",
        "values of jobs.custom_id that cannot be read",
        "values of workers.heartbeat_at that cannot be read",
        "jobs whose lease cannot be raised",
        "jobs of no batch",
        "counters of no batch",
    } <= set(findings)
    assert "json" not in "".join(map(str, findings.values())).replace("no { json", "no { json!"), "no contents"
    for reader in (lambda c: list(iter_results(c, batch_id)), lambda c: get_job(c, ids[2])):
        with pytest.raises(UnreadableRowError, match="helix db check --repair"), sqlite_database.read() as c:
            reader(c)
    check_rows(sqlite_database, repair=True)
    assert_sound(sqlite_database)
    with sqlite_database.read() as c:
        query = select(results.c.output_text).where(results.c.job_id == ids[0])
        assert c.execute(query).scalar_one() == "abc\ufffddef"
    assert counts(sqlite_database, batch_id) == {"queued": 2, "succeeded": 2}


def test_many_rows_are_looked_through_page_by_page(database, monkeypatch):
    monkeypatch.setattr("helix_jobs.storage.readable.PAGE_ROWS", 3)
    _, ids = stored_batch(database, 10)
    cast = "CAST(:bad AS json)" if database.dialect == "postgresql" else ":bad"
    run(database, f"UPDATE jobs SET request = {cast} WHERE id IN (:a, :b)", bad=MANY_DIGITS, a=ids[0], b=ids[9])  # noqa: S608
    assert found(database)["values of jobs.request that cannot be read"].examples == (str(ids[0]), str(ids[9]))
    assert check_rows(database, repair=True)
    assert_sound(database)


def test_the_command(database, stored, monkeypatch):
    monkeypatch.setenv("HELIX_DATABASE_URL", database.url.render_as_string(hide_password=False).replace("+psycopg", ""))

    def helix(*arguments):
        return CliRunner().invoke(cli, ["db", "check", *arguments], catch_exceptions=False)

    sound = helix()
    assert (sound.exit_code, "belongs together" in sound.output) == (0, True)
    run(database, "DELETE FROM jobs WHERE id = :id", id=stored[1][5])
    wrong = helix()
    assert wrong.exit_code == 1
    assert wrong.stdout == f"batches whose counters differ from their jobs: 1 ({stored[0]})\n"
    assert "db check --repair" in wrong.stderr
    assert json.loads(helix("--json").stdout)["findings"][0]["count"] == 1
    repaired = helix("--repair")
    assert repaired.exit_code == 0
    assert repaired.stdout.endswith("; counted anew\n")
    assert helix().exit_code == 0
