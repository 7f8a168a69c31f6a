"""What doctor says of home, database, broker, leases, models and the metrics port; real services, as they are."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import sys
import tempfile
import time
from collections import namedtuple
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url, text, update
from store_helpers import must_take, now, register, stored_batch

from helix_jobs.doctor import disk, home, leases
from helix_jobs.doctor import models as doctor_models
from helix_jobs.doctor.broker import check_broker, judge_state
from helix_jobs.doctor.clock import judge_skew
from helix_jobs.doctor.database import check_database
from helix_jobs.doctor.disk import check_room, describe_bytes, is_network, judge_room
from helix_jobs.doctor.home import check_home
from helix_jobs.doctor.leases import judge_leases
from helix_jobs.doctor.metrics import check_metrics
from helix_jobs.doctor.models import check_models
from helix_jobs.doctor.verdict import Level
from helix_jobs.jobs.broker_state import BrokerState, read_broker_state
from helix_jobs.jobs.database import Database, ensure_schema
from helix_jobs.jobs.embedded_broker import EmbeddedBroker
from helix_jobs.jobs.schema import workers
from helix_jobs.jobs.store import LeaseHolder
from helix_jobs.observability.metrics import MetricsServer
from helix_jobs.settings import Settings

OK, WARNING, FAILED = Level


@pytest.fixture
def settings(tmp_path):
    return Settings.from_environment({"HELIX_HOME": str(tmp_path / "home")})


def levels(verdicts):
    return {verdict.subject: verdict.level for verdict in verdicts}


def only(verdicts, subject):
    (found,) = [verdict for verdict in verdicts if verdict.subject == subject]
    if found.level is not OK:
        assert found.remedy, f"{subject}: no remedy"
    return found


# home and disk


def test_a_home_that_is_not_there_yet_is_fine_and_stays_away(settings):
    verdicts = check_home(settings)
    assert set(levels(verdicts).values()) == {OK}
    assert not settings.home.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
@pytest.mark.parametrize(("mode", "level"), [(0o700, OK), (0o755, WARNING), (0o710, WARNING)])
def test_a_home_others_may_look_into(settings, mode, level):
    settings.home.mkdir()
    settings.home.chmod(mode)
    verdicts = check_home(settings)
    found = only(verdicts, "home")
    assert found.level is level
    assert f"mode {mode:04o}" in found.finding
    assert found.remedy == (None if level is OK else f"chmod 700 {settings.home}")
    assert only(verdicts, "clock, files").level is OK
    assert list(settings.home.iterdir()) == []


def test_a_home_that_is_a_file_or_cannot_be_written(settings, monkeypatch):
    settings.home.write_text("")
    assert only(check_home(settings), "home").level is FAILED
    settings.home.unlink()
    monkeypatch.setattr(home.os, "access", lambda *_: False)
    assert "cannot be made" in only(check_home(settings), "home").finding
    settings.home.mkdir()
    assert "may not be read or written" in only(check_home(settings), "home").finding


@pytest.mark.parametrize(("free", "level"), [(100 << 20, FAILED), (1 << 30, WARNING), (2 << 30, OK), (1 << 40, OK)])
def test_room_on_a_disk(free, level):
    found = judge_room("home, disk", free, Path("/x"))
    assert found.level is level
    assert describe_bytes(free) in found.finding
    assert bool(found.remedy) is (level is not OK)


def test_the_disk_of_a_path_that_is_not_there_yet(tmp_path):
    assert "free for" in check_room("disk", tmp_path / "a" / "b").finding


def test_network_file_systems(monkeypatch, tmp_path):
    assert not is_network(disk.file_system(tmp_path))
    assert [is_network(kind) for kind in ("nfs4", "cifs", "smb3", "fuse.sshfs", "ext4", "apfs", "ntfs", None)] == [
        *[True] * 4,
        *[False] * 4,
    ]
    mounts = [("/", "ext4"), (str(tmp_path.parent), "NFS4"), (str(tmp_path / "other"), "ext4")]
    partition = namedtuple("Partition", "mountpoint fstype")  # noqa: PYI024  (psutil's is one)
    monkeypatch.setattr(disk.psutil, "disk_partitions", lambda **_: [partition(*mount) for mount in mounts])
    assert disk.file_system(tmp_path / "helix.db") == "nfs4"


# clock


@pytest.mark.parametrize(("seconds", "words"), [(3600.0, "3,600 s ahead of"), (-61.0, "61 s behind")])
def test_clocks_that_disagree_are_a_warning(seconds, words):
    found = judge_skew("broker", seconds)
    assert (found.subject, found.level) == ("clock, broker", WARNING)
    assert words in found.finding
    assert "NTP" in found.remedy


def test_clocks_that_agree():
    assert judge_skew("broker", -1.5).level is OK


# database


def test_a_sqlite_file_that_is_not_there_is_not_made(settings):
    found = only(check_database(settings), "database")
    assert found.level is OK
    assert "made at first use" in found.finding
    assert not settings.home.exists()


def test_a_sound_database(database, settings):
    url = database.url.render_as_string(hide_password=False)
    verdicts = check_database(dataclasses.replace(settings, database_url=url))
    assert set(levels(verdicts).values()) == {OK}
    found = levels(verdicts)
    assert {"database", "database, schema", "database, writes", "workers", "leases"} <= set(found)
    assert ("clock, database" in found) is (database.dialect == "postgresql")
    assert ("database, disk" in found) is (database.dialect == "sqlite")


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
    monkeypatch.setattr("helix_jobs.jobs.database.BUSY_TIMEOUT_SECONDS", 0.1)
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
        assert "permission denied" in found.finding
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
    assert "within half a minute" in found.remedy


def test_a_process_of_this_host_is_asked_for_itself():
    holder = LeaseHolder(worker_id="w", hostname="here", pid=7, heartbeat_at=now(), is_live=True, leases=3)
    common = {"waiting": 0, "now": now(), "hostname": "here"}
    assert only(judge_leases([holder], pid_exists=lambda _: True, **common), "leases").level is OK
    found = only(judge_leases([holder], pid_exists=lambda _: False, **common), "leases")
    assert (found.level, found.finding) == (WARNING, "3 of w, whose process is gone")
    assert found.remedy == leases._START_ONE
    elsewhere = dataclasses.replace(holder, hostname="there")
    assert only(judge_leases([elsewhere], pid_exists=lambda _: False, **common), "leases").level is OK


# broker


@pytest.fixture
def short_home():
    """A directory with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="hx-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_an_embedded_broker_is_looked_at_and_not_started(settings, short_home):
    settings = dataclasses.replace(settings, home=short_home)
    if sys.platform == "win32":
        assert check_broker(settings)[0].level is WARNING
        return
    (found,) = check_broker(settings)
    assert (found.level, "not running" in found.finding) == (OK, True)
    broker = EmbeddedBroker(short_home)
    broker.start()
    try:
        verdicts = check_broker(settings)
        assert set(levels(verdicts).values()) == {OK}
        assert only(verdicts, "broker").finding.startswith("embedded Valkey ")
        assert "noeviction" in only(verdicts, "broker, memory").finding
        assert "clock, broker" in levels(verdicts)
    finally:
        broker.stop()


def test_a_broker_that_is_not_there(settings):
    (found,) = check_broker(dataclasses.replace(settings, redis_url="redis://:hidden@127.0.0.1:1/0"))
    assert found.level is FAILED
    assert found.finding.startswith("the broker at redis://:***@127.0.0.1:1/0 does not answer")
    assert "HELIX_REDIS_URL" in found.remedy


def test_a_url_that_is_none(settings):
    (found,) = check_broker(dataclasses.replace(settings, redis_url="amqp-ish://x"))
    assert found.level is FAILED


SOUND = BrokerState(
    server="Redis 8.0.1",
    messages=5,
    unacked=2,
    used_memory=10 << 20,
    maxmemory=0,
    policy="noeviction",
    appends=True,
    is_saving=True,
    skew_seconds=0.1,
)


@pytest.mark.parametrize(
    ("change", "subject", "level", "words"),
    [
        ({}, "broker", OK, "Redis 8.0.1 at redis://h, 5 ids waiting, 2 in workers' hands"),
        ({"policy": "allkeys-lru"}, "broker, memory", WARNING, "maxmemory-policy allkeys-lru"),
        ({"maxmemory": 10 << 20}, "broker, memory", WARNING, "used of 10 MB"),
        ({"maxmemory": 1 << 30}, "broker, memory", OK, "used of 1.0 GB"),
        ({"appends": False}, "broker, persistence", OK, "sent again from the database"),
        ({"is_saving": False}, "broker, persistence", WARNING, "failed"),
        ({"skew_seconds": -600.0}, "clock, broker", WARNING, "600 s behind"),
    ],
)
def test_what_a_broker_says_about_itself(change, subject, level, words):
    found = only(judge_state(dataclasses.replace(SOUND, **change), "redis://h", embedded=False), subject)
    assert found.level is level
    assert words in found.finding


@pytest.mark.redis
@pytest.mark.skipif(sys.platform == "win32", reason="no embedded server on Windows")
def test_a_servers_settings_are_read(short_home):
    broker = EmbeddedBroker(short_home)
    broker.start()
    try:
        client = broker._client()
        client.config_set("maxmemory-policy", "volatile-lru")
        client.config_set("maxmemory", 50 << 20)
        client.config_set("appendonly", "yes")
        state = read_broker_state(broker.url)
        while client.info("persistence")["aof_rewrite_in_progress"]:  # until then it refuses to end
            time.sleep(0.01)
        client.close()
    finally:
        broker.stop()
    assert (state.policy, state.maxmemory, state.appends, state.messages) == ("volatile-lru", 50 << 20, True, 0)
    assert 0 < state.used_memory < 50 << 20
    assert abs(state.skew_seconds) < 5


# metrics port


def test_the_metrics_port(settings):
    assert only(check_metrics(settings), "metrics port").finding.startswith("off")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = dataclasses.replace(settings, metrics_port=other.getsockname()[1])
        found = only(check_metrics(taken), "metrics port")
        assert (found.level, "cannot be used" in found.finding) == (FAILED, True)
    assert only(check_metrics(taken), "metrics port").finding.endswith("free for a worker")
    nowhere = dataclasses.replace(taken, metrics_host="no-such-host.invalid")
    assert only(check_metrics(nowhere), "metrics port").level is FAILED


def test_the_metrics_port_of_a_worker(settings):
    sys.path.append(str(Path(__file__).parents[1] / "observability"))
    from test_metrics import QUEUE, worker

    server = MetricsServer("127.0.0.1", 0)
    try:
        server.show(worker, lambda: QUEUE)
        found = only(check_metrics(dataclasses.replace(settings, metrics_port=server.port)), "metrics port")
        assert (found.level, "served by a worker" in found.finding) == (OK, True)
    finally:
        server.close()


# models


@pytest.mark.demo
def test_models_that_are_here(demo_home, settings):
    settings = dataclasses.replace(settings, home=demo_home)
    target, draft = check_models(settings)
    assert (target.subject, target.level) == ("target model", OK)
    assert "135 million parameters" in target.finding
    assert draft.finding == "lookup+int8: nothing to download"
    both = check_models(dataclasses.replace(settings, draft_model="lookup+demo"))
    assert [verdict.level for verdict in both] == [OK, OK]


def test_models_that_are_not(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    target, draft = check_models(dataclasses.replace(settings, draft_model="nobody/no-such-model"))
    assert (target.level, "downloads it (93 MB)" in target.finding) == (WARNING, True)
    assert (draft.level, "nobody/no-such-model is not on this machine" in draft.finding) == (WARNING, True)
    assert not settings.home.exists()
    (tmp_path / "model").mkdir()
    for name, words in (("./nowhere", "does not exist"), (str(tmp_path / "model"), "no config.json")):
        found = only(check_models(dataclasses.replace(settings, target_model=name)), "target model")
        assert (found.level, words in found.finding) == (FAILED, True)
    assert only(check_models(dataclasses.replace(settings, draft_model="lookup+")), "draft model").level is FAILED


def test_the_fake_engine_needs_no_models(settings, monkeypatch):
    monkeypatch.setattr(doctor_models, "find_local_checkpoint", None)
    (found,) = check_models(dataclasses.replace(settings, engine="fake"))
    assert found.level is OK


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
