"""A database that answers "no" costs time, never an answer: real Postgres, a real writer, jobs in hand."""

from __future__ import annotations

import logging
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy import make_url

from helix_jobs.storage.database import Database
from tests.unit.worker.service_bench import Bench
from tests.worker_box import comes_true, wait_until

pytestmark = pytest.mark.postgres

JOBS = 12


@pytest.fixture
def admin(postgres_database):
    url = postgres_database.url.render_as_string(hide_password=False).replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def bench(postgres_database, admin):
    """A service whose role may not do more than Helix needs, so that a grant can be revoked."""
    role = f"{postgres_database.url.database}_worker"
    admin.execute(f"CREATE ROLE {role}")
    admin.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    admin.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
    url = make_url(postgres_database.url).update_query_dict({"options": f"-c role={role}"})
    database = Database(url.render_as_string(hide_password=False))
    opened = Bench(database)
    opened.role = role
    yield opened
    opened.close()
    database.dispose()
    admin.execute(f"DROP OWNED BY {role}")
    admin.execute(f"DROP ROLE {role}")


@contextmanager
def refusing(admin, sqlstate, *tables):
    """Every write to these tables is refused with this code."""
    admin.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'the server says no' USING ERRCODE = '{sqlstate}'; END $$"
    )
    for table in tables:
        admin.execute(f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION refuse()")
    yield
    admin.execute("DROP FUNCTION refuse CASCADE")


@contextmanager
def read_only(admin, _):
    """What a failover to a standby looks like: connections end, the server takes new ones and no writes."""
    with refusing(admin, "25006", "jobs", "results", "runs"):
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        yield


@contextmanager
def renamed_table(admin, _):
    admin.execute("ALTER TABLE results RENAME TO elsewhere")
    yield
    admin.execute("ALTER TABLE elsewhere RENAME TO results")


@contextmanager
def revoked_grant(admin, role):
    admin.execute(f"REVOKE INSERT ON results FROM {role}")
    yield
    admin.execute(f"GRANT INSERT ON results TO {role}")


def internal_error(admin, _):
    return refusing(admin, "XX001", "results")


def statement_timeout(admin, _):
    return refusing(admin, "57014", "results")


@pytest.mark.thorough(fast=1)
@pytest.mark.parametrize("fault", [read_only, renamed_table, revoked_grant, internal_error, statement_timeout])
def test_no_answer_is_lost_to_a_database_that_says_no(bench, admin, fault, caplog):
    caplog.set_level(logging.INFO, logger="helix_jobs")
    ids = bench.add(*[f"w{number} a b" for number in range(JOBS)])
    with fault(admin, bench.role):
        ended = bench.run(*ids)
        wait_until(lambda: bench.writer.retries > 3, "the writes never failed")
        acknowledged, _ = wait(ended, 0.2, FIRST_COMPLETED)
        assert not acknowledged, "a message was acknowledged without a commit"
        assert bench.writer.waiting > 0
        states = dict(admin.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
        assert not states.keys() & {"failed", "succeeded"}
        late = bench.add("one more") if fault is not read_only else []
        later = bench.run(*late)
        claimed = comes_true(lambda: any(bench.rows()[job_id].state != "queued" for job_id in late), 0.2)
        assert not claimed, "claimed while nothing could be written"
    assert all(future.result(30) is True for future in [*ended, *later])
    rows = bench.rows()
    assert {row.state for row in rows.values()} == {"succeeded"}
    assert {row.attempts for row in rows.values()} == {1}
    assert bench.result_ids() == sorted(rows)
    assert bench.writer.waiting == 0
    said = [record.getMessage() for record in caplog.records if "writes wait" in record.getMessage()]
    assert len(said) == 1, "said once, and then once a minute"
    assert "this worker claims no job" in said[0]
    assert any("takes writes again" in record.getMessage() for record in caplog.records)


def test_a_row_that_is_to_blame_still_fails_alone(bench, admin):
    admin.execute("ALTER TABLE results ADD CONSTRAINT short CHECK (length(output_text) < 40)")
    try:
        good, bad = bench.add("a b c", "word " * 20)
        assert all(future.result(30) is True for future in bench.run(good, bad))
    finally:
        admin.execute("ALTER TABLE results DROP CONSTRAINT short")
    rows = bench.rows()
    assert rows[good].state == "succeeded"
    assert (rows[bad].state, rows[bad].error_code) == ("failed", "engine_error")
