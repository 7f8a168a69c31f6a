"""Who may read what Helix writes. The umask is the widest there is: modes must not depend on it."""

from __future__ import annotations

import os
import stat
import sys

import pytest

from helix_jobs.errors import ConfigurationError
from helix_jobs.jobs.database import Database, ensure_schema
from helix_jobs.jobs.embedded_broker import EmbeddedBroker
from helix_jobs.private_files import open_private
from helix_jobs.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes say nothing there")


@pytest.fixture(autouse=True)
def _no_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def home_settings(home):
    return Settings(home=home, redis_url=None, database_url=f"sqlite:///{home / 'helix.db'}")


def test_a_new_home_and_its_database_are_private(tmp_path):
    settings = home_settings(tmp_path / "home")
    settings.make_home()
    database = Database(settings.database_url)
    ensure_schema(database)
    with database.write() as c:
        c.exec_driver_sql("DELETE FROM jobs")
        assert {path.name: mode(path) for path in settings.home.iterdir()} == {
            "helix.db": 0o600,
            "helix.db-wal": 0o600,
            "helix.db-shm": 0o600,
        }
    database.dispose()
    assert mode(settings.home) == 0o700


@pytest.mark.parametrize("content", [None, "helix.db", "worker.log"])
def test_a_home_that_was_open_is_closed(tmp_path, content):
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    if content:
        (home / content).touch()
    home_settings(home).make_home()
    assert mode(home) == 0o700


def test_somebodys_directory_is_left_open_with_a_warning(tmp_path, caplog):
    (tmp_path / "shared.txt").touch()
    tmp_path.chmod(0o755)
    settings = home_settings(tmp_path)
    settings.make_home()
    assert mode(tmp_path) == 0o755
    assert "is open to other users; chmod 700 it, or set another" in caplog.text
    database = Database(settings.database_url)
    ensure_schema(database)
    database.dispose()
    assert mode(tmp_path / "helix.db") == 0o600


def test_a_home_behind_a_symlink_is_closed_where_it_is(tmp_path):
    (tmp_path / "real").mkdir(mode=0o755)
    (tmp_path / "home").symlink_to(tmp_path / "real")
    home_settings(tmp_path / "home").make_home()
    assert mode(tmp_path / "real") == 0o700


@pytest.mark.parametrize("what", ["file", "dangling"])
def test_something_else_in_the_way_of_home_is_named(tmp_path, what):
    if what == "file":
        (tmp_path / "home").touch()
    else:
        (tmp_path / "home").symlink_to(tmp_path / "absent")
    with pytest.raises(ConfigurationError, match=r"HELIX_HOME .*/home cannot be made: File exists; set another"):
        home_settings(tmp_path / "home").make_home()


def test_logs_are_private(tmp_path):
    with open_private(tmp_path / "worker.log", "ab") as log:
        log.write(b"x")
    assert mode(tmp_path / "worker.log") == 0o600


@pytest.mark.redis
def test_the_embedded_brokers_files_are_private(tmp_path_factory):
    home = tmp_path_factory.mktemp("b")
    broker = EmbeddedBroker(home)
    broker.start()
    modes = {path.name: mode(path) for path in (home / "broker").iterdir()}
    assert broker.stop()
    assert mode(home / "broker") == 0o700
    assert modes["broker.log"] == modes["start.lock"] == 0o600
    assert (
        mode(broker.socket_path) == 0o700 if broker.socket_path.exists() else modes.get("broker.sock", 0o700) == 0o700
    )
