"""SQLite's write-ahead log stays small beside readers that take their time."""

from __future__ import annotations

import dataclasses

from sqlalchemy import text

from helix_jobs import HelixClient
from helix_jobs.client import client as client_module
from helix_jobs.database_url import sqlite_url
from helix_jobs.doctor import database as doctor
from helix_jobs.settings import Settings
from helix_jobs.storage import results, sqlite_engine
from tests.store_helpers import must_take, register, stored_batch, succeed


def answered(database, count):
    batch_id, ids = stored_batch(database, count)
    register(database, "w1")
    for job_id in ids:
        succeed(database, must_take(database, job_id))
    return batch_id


def settings(database, tmp_path):
    return Settings(home=tmp_path / "home", redis_url=None, database_url=sqlite_url(database.sqlite_file))


def log_bytes(database):
    return database.sqlite_file.with_name(f"{database.sqlite_file.name}-wal").stat().st_size


def test_a_reader_in_a_pager_keeps_no_snapshot(sqlite_database, tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "_RESULTS_PAGE", 2)
    batch_id = answered(sqlite_database, 5)
    with sqlite_database.read() as c:
        pool = c.engine
    with HelixClient(settings(sqlite_database, tmp_path)) as client:
        for reader in (client.results(batch_id), client.jobs(batch_id)):
            assert next(reader).line == 1
            with sqlite_database.write() as c:
                c.execute(text("UPDATE batches SET name = 'x'"))
            raw = pool.raw_connection()
            busy, in_log, written_back = raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            raw.close()
            assert (busy, in_log, written_back) == (0, 0, 0), "everything could be written back under the reader"
            assert [row.line for row in reader] == [2, 3, 4, 5]


def test_pages_of_their_own_hold_what_one_snapshot_holds(database):
    batch_id = answered(database, 7)
    for order in ("line", "completion"):
        with database.read() as c:
            at_once = list(results.iter_results(c, batch_id, order=order, chunk=2))
        assert list(results.iter_results(database.read, batch_id, order=order, chunk=2)) == at_once
        assert len(at_once) == 7


def test_a_log_that_grew_is_cut_down_again(sqlite_database):
    def grow(megabytes):
        for _ in range(megabytes):
            with sqlite_database.write() as c:
                c.execute(text("UPDATE batches SET source = hex(randomblob(500000))"))

    stored_batch(sqlite_database, 1)
    with sqlite_database.read() as reader:
        reader.execute(text("SELECT count(*) FROM jobs")).scalar_one()
        grow(24)
        assert log_bytes(sqlite_database) > sqlite_engine.LOG_LIMIT_BYTES
    grow(3)
    assert log_bytes(sqlite_database) <= sqlite_engine.LOG_LIMIT_BYTES


def test_doctor_shows_the_log_and_warns_of_a_large_one(sqlite_database, tmp_path, monkeypatch):
    answered(sqlite_database, 1)

    def verdict():
        found = doctor.check_database(dataclasses.replace(settings(sqlite_database, tmp_path)))
        return next(verdict for verdict in found if verdict.subject == "database, log")

    assert (verdict().level, verdict().finding.startswith("a write-ahead log of ")) == (doctor.Level.OK, True)
    monkeypatch.setattr(doctor, "LARGE_LOG_BYTES", 100)
    assert verdict().level is doctor.Level.WARNING
    assert "has read for so long" in verdict().remedy
