from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import IntegrityError

from helix_jobs.broker.queue_names import QueueNames, is_job_queue, read_queue_names
from helix_jobs.errors import DatabaseUnreachableError, SchemaVersionError
from helix_jobs.storage import api_batches, api_files, batches, claims, installation, publishing, workers
from helix_jobs.storage import status_counters as counters
from helix_jobs.storage.api_records import NewApiBatch
from helix_jobs.storage.database import Database
from helix_jobs.storage.migration import (
    alembic_config,
    current_revision,
    downgrade,
    ensure_schema,
    head_revision,
    upgrade,
)
from helix_jobs.storage.process_identity import ProcessIdentity
from helix_jobs.storage.records import FinishedJob, NewBatch
from helix_jobs.storage.schema import jobs, metadata, runs
from helix_jobs.storage.status import batch_status
from tests.store_helpers import (
    DIGEST,
    counts,
    fail,
    must_take,
    new_jobs,
    now,
    register,
    result_row,
    status,
    stored_batch,
    succeed,
)

# What revision 0001 wrote, in its own columns.
_OLD_ROWS = """
INSERT INTO workers (id, hostname, pid, device, target_model, slots, started_at, heartbeat_at)
VALUES ('w1', 'host', 4711, 'cpu', 'target', 4, '2026-11-01 00:00:00', '2026-11-01 00:00:00');
INSERT INTO batches (id, created_at, total, defaults, metadata)
VALUES ('b-old', '2026-11-01 00:00:00', 1, '{}', '{}');
INSERT INTO batch_counters (batch_id, writer, outcome, jobs, prompt_tokens) VALUES ('b-old', 'w1', 'stored', 1, 9)
"""


def _differences(database):
    with database.read() as c:
        options = {"compare_type": True, "compare_server_default": True}
        return compare_metadata(MigrationContext.configure(c, opts=options), metadata)


def _index_conditions(database):
    """Autogenerate does not compare the conditions of partial indexes."""
    with database.read() as c:
        return {
            index["name"]: str(index["dialect_options"].get(f"{database.dialect}_where"))
            for index in inspect(c).get_indexes("jobs")
            if index["name"].startswith("ix_")
        }


def test_head_is_the_revision_the_package_works_with():
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [head_revision()]


def test_upgrade_builds_exactly_the_tables_of_the_schema(empty_database, request):
    assert current_revision(empty_database) is None
    assert upgrade(empty_database) == head_revision()
    assert _differences(empty_database) == []
    by_migration = _index_conditions(empty_database)
    assert len(by_migration) == 7
    downgrade(empty_database, "base")
    with empty_database.write() as c:
        metadata.create_all(c)
    assert _index_conditions(empty_database) == by_migration


def test_autogenerate_would_notice_a_difference(empty_database):
    upgrade(empty_database)
    with empty_database.write() as c:
        c.execute(text("ALTER TABLE workers ADD COLUMN extra INTEGER"))
        c.execute(text("DROP INDEX ix_jobs_running"))
    assert {difference[0] for difference in _differences(empty_database)} == {"remove_column", "add_index"}


def test_runs_of_an_older_version_keep_their_figures_and_say_what_they_do_not_know(empty_database):
    assert upgrade(empty_database, "0001") == "0001"
    with empty_database.write() as c:
        for statement in _OLD_ROWS.split(";"):
            c.execute(text(statement))
        run_id = workers.start_run(c, "w1", now())
        c.execute(text("UPDATE runs SET steps = 7, draft_tokens = 5"))
    assert upgrade(empty_database) == head_revision()
    with empty_database.read() as c:
        row = c.execute(select(runs).where(runs.c.id == run_id)).one()
        assert (row.steps, row.draft_tokens, row.cached_prompt_tokens) == (7, 5, 0)
        assert (row.preemptions, row.depth_reasons, row.target_seconds, row.attention_seconds) == (None,) * 4
        # Nobody can say which process it was, so nobody takes it for gone.
        assert [old.identity for old in workers.live_workers(c)] == [ProcessIdentity(pid=4711)]
        assert batch_status(c, "b-old").prompt_tokens == 9
        assert batch_status(c, "b-old").cached_prompt_tokens == 0
    assert downgrade(empty_database, "0001") == "0001"
    with empty_database.read() as c:
        assert tuple(c.execute(text("SELECT steps, draft_tokens FROM runs")).one()) == (7, 5)
        assert c.execute(text("SELECT prompt_tokens FROM batch_counters")).scalar_one() == 9
    assert upgrade(empty_database) == head_revision()
    assert _differences(empty_database) == []


@pytest.mark.thorough(fast=1)
def test_down_and_up_again_with_data(empty_database):
    upgrade(empty_database)
    register(empty_database, "w1")
    _, ids = stored_batch(empty_database, 3)
    succeed(empty_database, must_take(empty_database, ids[0]))
    assert upgrade(empty_database) == head_revision()
    assert downgrade(empty_database, "base") is None
    with empty_database.read() as c:
        assert set(inspect(c).get_table_names()) <= {"alembic_version"}
    assert upgrade(empty_database) == head_revision()
    batch_id, _ = stored_batch(empty_database, 2)
    assert counts(empty_database, batch_id) == {"queued": 2}


def test_a_migration_that_fails_changes_nothing(empty_database):
    upgrade(empty_database)
    batch_id, _ = stored_batch(empty_database, 2)
    with empty_database.write() as c:
        c.execute(text("CREATE VIEW in_the_way AS SELECT id FROM workers"))
        # Both databases refuse to drop what is not there, in the middle of the downgrade.
        c.execute(text("DROP TABLE results"))
    with pytest.raises(Exception, match="results"):
        downgrade(empty_database, "base")
    assert current_revision(empty_database) == head_revision()
    with empty_database.read() as c:
        assert c.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 2
        assert batch_status(c, batch_id).total == 2


def test_an_empty_sqlite_is_migrated_at_first_use(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'deep' / 'er' / 'helix.db'}")
    ensure_schema(database)
    ensure_schema(database)
    assert current_revision(database) == head_revision()
    database.dispose()


def test_a_missing_sqlite_is_not_made_when_nothing_may_be_migrated(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'helix.db'}")
    with pytest.raises(SchemaVersionError, match="helix db upgrade"):
        ensure_schema(database, migrate=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.postgres
def test_an_empty_postgres_is_refused_with_the_command(empty_postgres_url):
    database = Database(empty_postgres_url)
    with pytest.raises(SchemaVersionError, match=r"is empty.*helix db upgrade"):
        ensure_schema(database)
    ensure_schema(database, migrate=True)
    ensure_schema(database)
    database.dispose()


def test_an_older_schema_is_refused_with_the_command_and_a_newer_one_names_the_remedy(empty_database):
    upgrade(empty_database)
    for revision, message in (("0000", "helix db upgrade"), ("9999", "newer than this Helix")):
        with empty_database.write() as c:
            c.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
        with pytest.raises(SchemaVersionError, match=message):
            ensure_schema(empty_database)


_RACER = """
import sys
from helix_jobs.storage.database import Database
from helix_jobs.storage.installation import installation_id
from helix_jobs.storage.migration import current_revision, ensure_schema
database = Database(sys.argv[1])
sys.stdin.readline()
ensure_schema(database, migrate=True)
with database.read() as c:
    print(current_revision(database), installation_id(c))
"""


@pytest.mark.thorough
def test_two_processes_may_migrate_an_empty_database_at_once(empty_database):
    url = empty_database.url.render_as_string(hide_password=False)
    racers = [
        subprocess.Popen([sys.executable, "-c", _RACER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    with ThreadPoolExecutor(3) as pool:
        outputs = list(pool.map(lambda racer: racer.communicate("go\n", timeout=60)[0].strip(), racers))
    with empty_database.read() as c:
        assert outputs == [f"{head_revision()} {installation.installation_id(c)}"] * 3, "one id, made once"
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert _differences(empty_database) == []


def test_each_database_is_an_installation_of_its_own(empty_database, tmp_path):
    other = Database(f"sqlite:///{tmp_path / 'other.db'}")
    ids = []
    for database in (empty_database, other, empty_database):
        upgrade(database)
        with database.read() as c:
            ids.append(installation.installation_id(c))
    assert ids[0] == ids[2] != ids[1]
    assert all(is_job_queue(QueueNames(each).queue) for each in ids)
    with pytest.raises(IntegrityError), other.write() as c:
        c.execute(text("INSERT INTO installation (singleton, id, created_at) VALUES (2, 'b', CURRENT_TIMESTAMP)"))
    with other.write() as c:
        c.execute(text("DELETE FROM installation"))
    with pytest.raises(SchemaVersionError, match="INSERT INTO installation") as caught:
        read_queue_names(other)
    remedy = str(caught.value).partition("INSERT INTO ")[2].partition(", with letters")[0]
    with other.write() as c:
        c.execute(text("INSERT INTO " + remedy))
    assert read_queue_names(other).queue == "helix.a1b2c3d4e5f6"
    other.dispose()


def test_what_was_published_under_the_old_names_is_published_again(empty_database):
    upgrade(empty_database)
    _, ids = stored_batch(empty_database, 3)
    downgrade(empty_database, "0003")
    with empty_database.write() as c:
        assert publishing.mark_published(c, ids[:2], now()) == 2
    for move in (upgrade, lambda database: downgrade(database, "0003")):
        move(empty_database)
        with empty_database.write() as c:
            # Not by the code that publishes: it asks for columns that the older schema does not have.
            unpublished = select(jobs.c.id).where(jobs.c.state == "queued", jobs.c.published_at.is_(None))
            assert list(c.execute(unpublished.order_by(jobs.c.id)).scalars()) == ids
            publishing.mark_published(c, ids, now())


def test_answers_that_were_cut_off_before_are_counted(empty_database):
    upgrade(empty_database)
    for worker in ("w1", "w2"):
        register(empty_database, worker)
    batch, ids = stored_batch(empty_database, 4)
    for job_id, worker, reason in zip(ids, ("w1", "w2", "w2"), ("length", "length", "stop"), strict=False):
        with empty_database.write() as c:
            claimed = claims.claim(c, job_id, worker_id=worker, now=now())
            done = FinishedJob(claimed.id, claimed.lease, worker)
            assert claims.finish_succeeded(c, done, [result_row(finish_reason=reason)], now())
    assert status(empty_database, batch).cut_off == 2
    downgrade(empty_database, "0004")
    assert upgrade(empty_database) == head_revision()
    assert status(empty_database, batch).cut_off == 2
    with empty_database.write() as c:
        assert counters.counters_agree(c, batch)


def test_an_older_version_keeps_the_first_answer_of_each_job(empty_database):
    upgrade(empty_database)
    register(empty_database, "w1")
    batch, ids = stored_batch(empty_database, 2)
    with empty_database.write() as c:
        for job_id in ids:
            claimed = claims.claim(c, job_id, worker_id="w1", now=now())
            answers = [result_row(choice=n, finish_reason="length", output_text=f"{job_id} {n}") for n in range(3)]
            assert claims.finish_succeeded(c, FinishedJob(job_id, claimed.lease, "w1"), answers, now())
    assert downgrade(empty_database, "0006") == "0006"
    with empty_database.read() as c:
        texts = c.execute(text("SELECT output_text FROM results ORDER BY job_id")).scalars().all()
    assert texts == [f"{job_id} 0" for job_id in ids]
    assert upgrade(empty_database) == head_revision()
    assert _differences(empty_database) == []
    assert status(empty_database, batch).cut_off == 2
    with empty_database.write() as c:
        assert counters.counters_agree(c, batch)


@pytest.mark.thorough(fast=1)
def test_an_older_version_reads_jobs_whose_answers_were_refused(empty_database):
    upgrade(empty_database)
    register(empty_database, "w1", "w2")
    batch, ids = stored_batch(empty_database, 4)
    # One writer has failed jobs of both kinds, another of one; a third job waits for its second try.
    for job_id, worker in zip(ids, ("w1", "w2", "w1"), strict=False):
        claimed = must_take(empty_database, job_id, worker)
        with empty_database.write() as c:
            done = FinishedJob(job_id, claimed.lease, worker)
            if job_id == ids[2]:
                assert claims.refuse(c, done, now())
            else:
                assert claims.finish_not_accepted(c, done, [result_row()], "too short", now())
    assert fail(empty_database, must_take(empty_database, ids[3]))
    assert status(empty_database, batch).error_counts == {"engine_error": 1, "not_accepted": 2}
    finished_at = status(empty_database, batch).finished_at
    assert downgrade(empty_database, "0006") == "0006"
    with empty_database.read() as c:
        rows = c.execute(text("SELECT error_code, error_message FROM jobs ORDER BY id")).all()
        assert [row.error_code for row in rows] == ["engine_error", "engine_error", None, "engine_error"]
        assert rows[0].error_message == "too short"
        assert c.execute(text("SELECT count(*) FROM results")).scalar_one() == 0
        outcomes = "SELECT outcome, sum(jobs) AS jobs FROM batch_counters GROUP BY outcome ORDER BY outcome"
        assert [tuple(row) for row in c.execute(text(outcomes))] == [("engine_error", 3), ("stored", 4)]
    assert upgrade(empty_database) == head_revision()
    assert status(empty_database, batch).error_counts == {"engine_error": 3}
    assert status(empty_database, batch).finished_at == finished_at
    with empty_database.write() as c:
        assert counters.counters_agree(c, batch)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatabaseUnreachableError, match="folder cannot be made"):
        ensure_schema(Database(f"sqlite:///{tmp_path / 'file' / 'helix.db'}"))


def test_alembic_itself_finds_the_configured_database(tmp_path, monkeypatch):
    monkeypatch.setenv("HELIX_DATABASE_URL", f"sqlite:///{tmp_path / 'own.db'}")
    from alembic import command

    command.upgrade(alembic_config(), "head")
    database = Database(f"sqlite:///{tmp_path / 'own.db'}")
    assert current_revision(database) == head_revision()
    with database.write() as c:
        batches.create_batch(c, NewBatch(id="b-1", created_at=now()))
        batches.insert_jobs(c, "b-1", new_jobs(1), now())
        batches.seal_batch(c, "b-1", 1, DIGEST)
    assert status(database, "b-1").total == 1
    database.dispose()


@pytest.mark.thorough(fast=1)
def test_batches_over_http_leave_their_jobs_to_an_older_version(empty_database):
    upgrade(empty_database)
    batch_id, _ = stored_batch(empty_database, 2)
    new = NewApiBatch(
        id="batch_1",
        owner="local",
        input_file_id="file-1",
        endpoint="/v1/completions",
        completion_window="24h",
        metadata={},
        created_at=now(),
        expires_at=now(),
    )
    with empty_database.write() as c:
        api_batches.create_api_batch(c, new)
        api_batches.accept(c, new.id, batch_id, now())
        api_files.begin_upload(c, "file-1", "local", now())
        api_files.add_part(c, "file-1", 0, b"x", now())
    assert downgrade(empty_database, "0008") == "0008"
    with empty_database.read() as c:
        assert not [name for name in inspect(c).get_table_names() if name.startswith("api_")]
        kept = select(jobs.c.state).where(jobs.c.batch_id == batch_id)
        assert list(c.execute(kept).scalars()) == ["queued", "queued"]
    assert upgrade(empty_database) == head_revision()
    assert _differences(empty_database) == []
