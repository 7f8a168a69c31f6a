"""What doctor says of the database and the leases in it."""

from __future__ import annotations

import dataclasses
import os
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import make_url, text, update

from helix_jobs.doctor.database import check_database, judge_state
from helix_jobs.doctor.database_state import read_database_state
from helix_jobs.doctor.leases import judge_leases
from helix_jobs.storage.database import Database
from helix_jobs.storage.migration import ensure_schema
from helix_jobs.storage.process_identity import Here, ProcessIdentity
from helix_jobs.storage.records import LeaseHolder
from helix_jobs.storage.schema import workers
from tests.store_helpers import must_take, now, register, stored_batch
from tests.unit.doctor.verdicts import FAILED, OK, WARNING, levels, only

# database


def test_a_sqlite_file_that_is_not_there_is_not_made(settings):
    found = only(check_database(settings), "database")
    assert found.level is OK
    assert "made at first use" in found.finding
    assert not settings.home.exists()


def test_a_sound_database(database, settings):
    url = database.url.render_as_string(hide_password=False)
    found = levels(check_database(dataclasses.replace(settings, database_url=url)))
    # Whether the tests' own server vacuums is for whoever set it up to say.
    assert {level for subject, level in found.items() if subject != "database, vacuum"} == {OK}
    assert {"database", "database, schema", "database, writes", "workers", "leases"} <= set(found)
    assert ("clock, database" in found) is (database.dialect == "postgresql")
    assert ("database, disk" in found) is (database.dialect == "sqlite")


@pytest.mark.parametrize(("is_on", "level"), [(True, OK), (False, WARNING)])
def test_a_server_that_does_not_vacuum_is_told_of(postgres_database, is_on, level):
    state = read_database_state(postgres_database)
    with postgres_database.read() as c:
        assert state.is_vacuumed is (c.execute(text("SHOW autovacuum")).scalar_one() == "on")
    found = only(judge_state(dataclasses.replace(state, is_vacuumed=is_on), "postgresql://h/d"), "database, vacuum")
    assert found.level is level
    assert is_on or "autovacuum = on" in found.remedy


def test_schemas_of_other_versions(database, settings):
    url = database.url.render_as_string(hide_password=False)
    before = "SELECT version_num FROM alembic_version"
    with database.read() as c:
        head = c.execute(text(before)).scalar_one()
    try:
        for revision, remedy in (("0001", "helix db upgrade"), ("9999", "update Helix")):
            with database.write() as c:
                c.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
            verdicts = check_database(dataclasses.replace(settings, database_url=url))
            found = only(verdicts, "database, schema")
            assert (found.level, remedy in found.remedy) == (FAILED, True)
            assert "leases" not in levels(verdicts)
    finally:
        with database.write() as c:
            c.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": head})


def test_an_empty_database(empty_database, settings):
    with empty_database.write():
        pass
    url = empty_database.url.render_as_string(hide_password=False)
    found = only(check_database(dataclasses.replace(settings, database_url=url)), "database, schema")
    if empty_database.dialect == "sqlite":
        assert found.level is OK
    else:
        assert (found.level, found.remedy) == (FAILED, "run helix db upgrade")


def test_a_locked_sqlite_database_takes_no_writes(sqlite_database, settings, monkeypatch):
    monkeypatch.setattr("helix_jobs.storage.sqlite_engine.BUSY_TIMEOUT_SECONDS", 0.1)
    url = sqlite_database.url.render_as_string(hide_password=False)
    with sqlite_database.write():
        found = only(check_database(dataclasses.replace(settings, database_url=url)), "database, writes")
    assert found.level is FAILED
    assert "is locked by another process" in found.finding


def test_a_file_that_is_no_database(settings):
    settings.make_home()
    (settings.home / "helix.db").write_bytes(b"prompts, one a line\n" * 100)
    found = only(check_database(settings), "database")
    assert found.level is FAILED
    assert "is not an SQLite database" in found.finding


@pytest.mark.postgres
def test_a_postgres_user_without_rights_takes_no_writes(postgres_database, settings):
    url = postgres_database.url.render_as_string(hide_password=False)
    role = f"{postgres_database.url.database}_reader"
    reader = make_url(url).update_query_dict({"options": f"-c role={role}"})
    with postgres_database.write() as c:
        c.execute(text(f"CREATE ROLE {role}"))
        c.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
    try:
        there = dataclasses.replace(settings, database_url=reader.render_as_string(hide_password=False))
        found = only(check_database(there), "database, writes")
        assert found.level is FAILED
        assert f"the role {role} lacks the right to INSERT on the table " in found.finding
        assert "INSERT" in found.remedy
    finally:
        with postgres_database.write() as c:
            c.execute(text(f"DROP OWNED BY {role}"))
            c.execute(text(f"DROP ROLE {role}"))


@pytest.mark.postgres
def test_a_postgres_that_does_not_know_the_database(postgres_server_url, settings):
    url = make_url(postgres_server_url).set(drivername="postgresql+psycopg", database="no_such_database")
    there = dataclasses.replace(settings, database_url=url.render_as_string(hide_password=False))
    found = only(check_database(there), "database")
    assert found.level is FAILED
    assert "no_such_database" in found.finding
    psycopg.connect(postgres_server_url).close()


def test_a_database_of_an_older_layout_is_left_alone(tmp_path, settings):
    """Doctor examines; it migrates nothing, also not an empty file."""
    file = tmp_path / "empty.db"
    file.touch()
    check_database(dataclasses.replace(settings, database_url=f"sqlite:///{file}"))
    database = Database(f"sqlite:///{file}")
    with database.read() as c:
        assert c.execute(text("SELECT count(*) FROM sqlite_master")).scalar_one() == 0
    ensure_schema(database)
    database.dispose()
    assert os.access(file, os.W_OK)


# leases


def test_leases_of_dead_workers(database, settings):
    url = database.url.render_as_string(hide_password=False)
    register(database, "w1", "w2")
    _, ids = stored_batch(database, 4)
    must_take(database, ids[0], "w1")
    must_take(database, ids[1], "w2")
    must_take(database, ids[2], "unknown")
    with database.write() as c:
        long_ago = now() - timedelta(minutes=5)
        c.execute(update(workers).where(workers.c.id == "w2").values(heartbeat_at=long_ago))
    verdicts = check_database(dataclasses.replace(settings, database_url=url))
    assert only(verdicts, "workers").finding == "1 alive, 1 job running, 1 waiting"
    found = only(verdicts, "leases")
    assert found.level is WARNING
    assert "1 of unknown, which nobody knows" in found.finding
    assert "1 of w2, silent for 3" in found.finding
    assert "within 30 s" in found.remedy


def test_a_process_of_this_host_is_asked_for_itself():
    identity = ProcessIdentity(pid=7, boot_id="here", started="1")
    holder = LeaseHolder(worker_id="w", identity=identity, heartbeat_at=now(), is_live=True, leases=3)
    common = {"waiting": 0, "now": now(), "lease": 30.0}
    living, gone = (Here(boot_id="here", pid_namespace=None, started={7: start}.get) for start in ("1", None))
    assert only(judge_leases([holder], here=living, **common), "leases").level is OK
    found = only(judge_leases([holder], here=gone, **common), "leases")
    assert (found.level, found.finding) == (WARNING, "3 of w, whose process is gone")
    own = "it takes over the jobs of dead workers of its own host at once"
    assert found.remedy == f"start a worker: {own}, others after 30 s"
    many = dataclasses.replace(holder, leases=1234)
    (busy, _) = judge_leases([many], here=living, **common | {"waiting": 5678})
    assert busy.finding == "1 alive, 1,234 jobs running, 5,678 waiting"
    elsewhere = dataclasses.replace(holder, identity=dataclasses.replace(identity, boot_id="there"))
    assert only(judge_leases([elsewhere], here=gone, **common), "leases").level is OK
