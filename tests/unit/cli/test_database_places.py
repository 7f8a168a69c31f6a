"""Databases that cannot be Helix's, each refused in a sentence or two with the remedy, by commands and doctor."""

from __future__ import annotations

import json
import os
import secrets

import psycopg
import pytest
from sqlalchemy import make_url

from helix_jobs.database_url import sqlite_url
from helix_jobs.doctor.database import check_database
from helix_jobs.doctor.verdict import Level
from helix_jobs.settings import Settings
from helix_jobs.storage.database import Database

LINES = b'{"prompt": "\xf0\x9f\x98\x80"}\n'


@pytest.fixture
def make_database(postgres_server_url):
    """Databases made in some way, dropped afterwards; gives their URL."""
    made = []

    def run(statement, name="postgres"):
        url = make_url(postgres_server_url).set(database=name).render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement)

    def make(how="", *statements, role=None):
        name = f"helix_test_{secrets.token_hex(6)}"
        run(f"CREATE DATABASE {name} {how}")
        made.append((name, role))
        if role is not None:
            run(f"CREATE ROLE {role}")
        for statement in statements:
            run(statement, name)
        url = make_url(postgres_server_url).set(drivername="postgresql", database=name)
        if role is not None:
            url = url.update_query_dict({"options": f"-c role={role}"})
        return url.render_as_string(hide_password=False)

    make.run = run
    yield make
    for name, role in made:
        run(f"DROP DATABASE {name} WITH (FORCE)")
        if role is not None:
            run(f"DROP ROLE {role}")


def said(result):
    """A person's one line."""
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    (line,) = result.stderr.strip().splitlines()
    return line


def doctor(monkeypatch, url):
    monkeypatch.setenv("HELIX_DATABASE_URL", url)
    verdicts = check_database(Settings.from_environment())
    return [verdict for verdict in verdicts if verdict.level is Level.FAILED]


@pytest.mark.postgres
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_an_encoding_that_cannot_hold_every_text(helix, monkeypatch, make_database, encoding):
    url = make_database(f"ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    monkeypatch.setenv("HELIX_DATABASE_URL", url)
    for command in (["db", "upgrade"], ["submit", "-"], ["list"]):
        result = helix(*command, stdin=LINES)
        assert result.exit_code == 2
        assert f"has the encoding {encoding}" in said(result)
        assert "ENCODING 'UTF8' TEMPLATE template0" in said(result)
    (verdict,) = doctor(monkeypatch, url)
    assert encoding in verdict.finding


@pytest.mark.postgres
def test_a_role_that_may_not_create_tables(helix, monkeypatch, make_database):
    url = make_database(role=f"helix_role_{secrets.token_hex(4)}")
    monkeypatch.setenv("HELIX_DATABASE_URL", url)
    result = helix("db", "upgrade")
    assert result.exit_code == 3
    assert "permission denied for schema public" in said(result)
    assert "GRANT CREATE ON SCHEMA public" in said(result)
    found = {verdict.subject: verdict for verdict in doctor(monkeypatch, url)}
    assert "may not create tables in the schema public" in found["database, writes"].finding
    assert "GRANT CREATE ON SCHEMA public TO helix_role_" in found["database, writes"].remedy


@pytest.mark.postgres
def test_a_role_that_may_not_insert(helix, monkeypatch, make_database):
    role = f"helix_role_{secrets.token_hex(4)}"
    url = make_database(role=role)
    name = make_url(url).database
    monkeypatch.setenv(
        "HELIX_DATABASE_URL", make_url(url).difference_update_query(["options"]).render_as_string(hide_password=False)
    )
    assert helix("db", "upgrade").exit_code == 0
    make_database.run(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}", name)
    monkeypatch.setenv("HELIX_DATABASE_URL", url)
    result = helix("submit", "-", stdin=LINES)
    assert result.exit_code == 3
    assert "permission denied for table" in said(result)
    assert "SELECT, INSERT, UPDATE and DELETE" in said(result)
    (verdict,) = doctor(monkeypatch, url)
    assert f"the role {role} lacks the right to INSERT" in verdict.finding
    make_database.run(f"DROP OWNED BY {role}", name)


@pytest.mark.postgres
@pytest.mark.parametrize("revision", ["0001", "0002", "9999", "ae1027a6acf"])
def test_another_programs_revision_is_not_taken_for_ours(helix, monkeypatch, make_database, revision):
    url = make_database(
        "",
        "CREATE TABLE alembic_version (version_num varchar(32))",
        f"INSERT INTO alembic_version VALUES ('{revision}')",  # noqa: S608  (a test's own)
        "CREATE TABLE invoices (id integer)",
    )
    monkeypatch.setenv("HELIX_DATABASE_URL", url)
    for command in (["db", "current"], ["db", "upgrade"], ["submit", "-"]):
        result = helix(*command, stdin=LINES)
        assert result.exit_code == 3
        assert "holds tables of another program" in said(result)
        assert "?options=-csearch_path%3Dhelix" in said(result)
    (verdict,) = doctor(monkeypatch, url)
    assert "another program" in verdict.finding


@pytest.mark.postgres
def test_other_programs_tables_of_our_names(helix, monkeypatch, make_database):
    monkeypatch.setenv("HELIX_DATABASE_URL", make_database("", "CREATE TABLE jobs (id integer)"))
    assert "holds tables of another program" in said(helix("db", "upgrade"))


@pytest.mark.postgres
def test_the_remedy_works_a_schema_of_its_own(helix, monkeypatch, make_database):
    url = make_database("", "CREATE TABLE alembic_version (version_num varchar(32))", "CREATE SCHEMA helix")
    make_database.run("INSERT INTO alembic_version VALUES ('0002')", make_url(url).database)
    there = make_url(url).update_query_dict({"options": "-csearch_path=helix"}).render_as_string(hide_password=False)
    monkeypatch.setenv("HELIX_DATABASE_URL", there)
    assert helix("db", "upgrade").exit_code == 0
    assert helix("submit", "-", stdin=LINES).exit_code == 0
    assert doctor(monkeypatch, there) == []
    missing = there.replace("%3Dhelix", "%3Dmissing")
    monkeypatch.setenv("HELIX_DATABASE_URL", missing)
    assert "create the schema that search_path names" in said(helix("db", "upgrade"))
    assert "search_path names no schema" in doctor(monkeypatch, missing)[-1].finding


def test_another_programs_sqlite_file(helix, monkeypatch, tmp_path):
    url = sqlite_url(tmp_path / "other.db")
    database = Database(url)
    with database.write() as c:
        c.exec_driver_sql("CREATE TABLE alembic_version (version_num varchar(32))")
        c.exec_driver_sql("INSERT INTO alembic_version VALUES ('0002')")
    database.dispose()
    monkeypatch.setenv("HELIX_DATABASE_URL", url)
    assert "name another file" in said(helix("submit", "-", stdin=LINES))
    assert "another program" in doctor(monkeypatch, url)[0].finding


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://helix:Secret@Half/Rest#9@127.0.0.1:1/h1",
        "postgresql://helix:Secret@Rest@127.0.0.1:1/h1",
        "postgres://helix:a?Secret@Rest@127.0.0.1:1/h1",
    ],
)
def test_no_part_of_a_password_is_shown(helix, monkeypatch, url):
    monkeypatch.setenv("HELIX_DATABASE_URL", url)
    for command in (["list"], ["list", "--json"], ["doctor", "--device", "cpu"], ["db", "upgrade"]):
        result = helix(*command)
        assert result.exit_code == 2
        assert not any(part in result.output for part in ("Secret", "Rest", "Half"))
        assert "percent-encode" in result.output
        assert "Traceback" not in result.output


@pytest.mark.thorough(fast=3)
@pytest.mark.parametrize("name", ["feature%2Flogin", "run?1", "run?2", "a#b", "ü &=%25", "100%"])
def test_any_path_may_be_the_home(helix, monkeypatch, tmp_path, name):
    home = tmp_path / name / ".helix"
    monkeypatch.setenv("HELIX_HOME", str(home))
    assert helix("submit", "-", "--name", "only", stdin=LINES).exit_code == 0
    assert (home / "helix.db").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == [name]
    assert len(json.loads(helix("list", "--json").stdout)) == 1
    verdicts = check_database(Settings.from_environment())
    assert any(str(home / "helix.db") in verdict.finding for verdict in verdicts)
    child = Settings.from_environment({**os.environ, **Settings.from_environment().to_environment()})
    assert child == Settings.from_environment()
