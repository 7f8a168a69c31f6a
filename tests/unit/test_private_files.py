"""Who may read what Helix writes. The umask is the widest there is: modes must not depend on it."""

from __future__ import annotations

import io
import os
import shutil
import stat
import sys
import tarfile

import pytest

from helix_jobs.broker.embedded import EmbeddedBroker
from helix_jobs.doctor.home import check_home
from helix_jobs.doctor.verdict import Level
from helix_jobs.engine.kernels.cpu.build import build_libraries
from helix_jobs.engine.loading.demo_model import ensure_demo_model
from helix_jobs.errors import ConfigurationError
from helix_jobs.files import atomic_write, is_own_program, open_private, read_private, touch_private, write_private
from helix_jobs.locks import FileLock
from helix_jobs.settings import Settings
from helix_jobs.storage.database import Database
from helix_jobs.storage.migration import ensure_schema

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes say nothing there")
as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can make another user's files"
)
STRANGER = 65534


@pytest.fixture(autouse=True)
def _no_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def home_settings(home):
    return Settings(home=home, redis_url=None, database_url=f"sqlite:///{home / 'helix.db'}")


# HELIX_HOME itself


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


def test_a_directory_everybody_may_write_to_is_no_home(tmp_path):
    (tmp_path / "shared.txt").touch()
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigurationError, match="can be written by every user of this machine; chmod o-w it"):
        home_settings(tmp_path).make_home()


def test_a_home_that_is_a_link_is_refused_with_the_place_behind_it(tmp_path):
    real = tmp_path / "real"
    real.mkdir(mode=0o755)
    (tmp_path / "home").symlink_to(real)
    with pytest.raises(ConfigurationError, match=f"is a symbolic link, .*set HELIX_HOME to {real}"):
        home_settings(tmp_path / "home").make_home()
    assert mode(real) == 0o755
    (only,) = [verdict for verdict in check_home(home_settings(tmp_path / "home")) if verdict.subject == "home"]
    assert (only.level, str(real) in str(only.remedy)) == (Level.FAILED, True)


@as_root
def test_another_users_home_is_refused_and_left_as_it_is(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "helix.db").touch()
    os.chown(home, STRANGER, STRANGER)
    with pytest.raises(ConfigurationError, match=f"belongs to another user .id {STRANGER}.; set HELIX_HOME"):
        home_settings(home).make_home()
    assert mode(home) == 0o755
    (only,) = [verdict for verdict in check_home(home_settings(home)) if verdict.subject == "home"]
    assert only.level is Level.FAILED


def test_something_else_in_the_way_of_home_is_named(tmp_path):
    (tmp_path / "home").touch()
    with pytest.raises(ConfigurationError, match=r"/home is no directory; remove it, or set another HELIX_HOME"):
        home_settings(tmp_path / "home").make_home()


# What stands where Helix's own files belong


def plant_link(place, elsewhere):
    place.symlink_to(elsewhere)


def plant_pipe(place, _):
    os.mkfifo(place)


def plant_file_of_another_user(place, _):
    place.write_bytes(b"theirs")
    os.chown(place, STRANGER, STRANGER)


@pytest.mark.parametrize("plant", [plant_link, plant_pipe, pytest.param(plant_file_of_another_user, marks=as_root)])
@pytest.mark.parametrize(
    "open_it",
    [
        lambda path: open_private(path, "ab"),
        lambda path: open_private(path, "wb"),
        touch_private,
        read_private,
        lambda path: FileLock(path).acquire(),
    ],
    ids=["append", "empty", "touch", "read", "lock"],
)
def test_what_is_planted_is_not_opened(tmp_path, plant, open_it):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    plant(tmp_path / "place", elsewhere)
    with pytest.raises(ConfigurationError, match=r"place (is a symbolic link|is no file|belongs to another user)"):
        open_it(tmp_path / "place")
    assert elsewhere.read_bytes() == b"mine"


def test_a_database_is_not_made_behind_a_link(tmp_path):
    (tmp_path / "helix.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match=r"helix\.db is a symbolic link"):
        ensure_schema(Database(f"sqlite:///{tmp_path / 'helix.db'}"))
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_written_whole_takes_the_place_of_a_link(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    (tmp_path / "owner").symlink_to(elsewhere)
    write_private(tmp_path / "owner", b"17\n")
    assert (elsewhere.read_bytes(), read_private(tmp_path / "owner")) == (b"mine", b"17\n")
    assert mode(tmp_path / "owner") == 0o600


@pytest.mark.parametrize(
    "use",
    [
        lambda home: EmbeddedBroker(home).start(),
        lambda home: EmbeddedBroker(home).is_running(),
        lambda home: build_libraries(home / "native", 64),
        lambda home: ensure_demo_model(home, lambda _: None),
    ],
    ids=["broker-start", "broker-asked", "native", "models"],
)
def test_a_link_is_no_directory_of_a_home(tmp_path, use):
    (tmp_path / "elsewhere").mkdir()
    for name in ("broker", "native", "models"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="is a symbolic link"):
        use(tmp_path)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def write_for_all(path):
    path.chmod(0o777)


def give_away(path):
    os.chown(path, STRANGER, STRANGER)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler whose every run makes another library."""
    script = tmp_path / "c++"
    script.write_text(
        '#!/bin/sh\nfor last; do [ "$previous" = -o ] && echo compiled $$ > "$last"; previous=$last; done\n:\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("tainted", [0, 1])
@pytest.mark.parametrize("taint", [write_for_all, pytest.param(give_away, marks=as_root)])
def test_kernels_that_others_could_write_are_compiled_anew(tmp_path, taint, tainted):
    def build():
        return [library.read_text() for library in build_libraries(tmp_path / "native", 64)]

    libraries = build_libraries(tmp_path / "native", 64)
    assert [mode(library) for library in libraries] == [0o700, 0o700]
    first = [library.read_text() for library in libraries]
    for _ in range(3):
        assert build() == first
    taint(libraries[tainted])
    assert [one == other for one, other in zip(build(), first, strict=True)] == [tainted != 0, tainted != 1]
    assert all(is_own_program(library) for library in libraries)


def copied(home, place):
    shutil.copytree(home, place)


def unpacked(home, place):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(home, "home")
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        tar.extractall(place.parent, filter="fully_trusted")  # noqa: S202  (made above)
    (place.parent / "home").rename(place)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("bring", [copied, unpacked])
def test_kernels_that_came_with_a_copied_home_are_compiled_anew(tmp_path, bring, caplog):
    """They belong to this user, as everything does that this user unpacks, and anybody may have put code into them."""
    home, copy = tmp_path / "home", tmp_path / "copy"
    build_libraries(home / "native", 64)
    bring(home, copy)
    there = sorted((copy / "native").glob("*.so"))
    assert len(there) == 2
    for library in there:
        library.write_text("a stranger's")
        library.chmod(0o700)
        assert is_own_program(library)
    assert sorted(build_libraries(copy / "native", 64)) == there
    assert all(library.read_text().startswith("compiled ") for library in there)
    assert caplog.text.count("was not made here") == 2
    assert all(library.exists() for library in build_libraries(home / "native", 64))


@pytest.mark.usefixtures("compiler")
def test_a_seal_of_another_library_does_not_count(tmp_path):
    _, library = build_libraries(tmp_path / "native", 64)
    first = library.read_text()
    other = library.with_name("other")
    other.write_text(first)
    other.chmod(0o700)
    other.replace(library)
    assert build_libraries(tmp_path / "native", 64)[1].read_text() != first


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


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path, "partial") as stream:  # noqa: PT012  (the block is what fails)
        stream.write(b"half of the n")
        raise RuntimeError
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("kept", b"old")]
    with atomic_write(path, "partial") as stream:
        stream.write(b"new")
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("kept", b"new")]


def test_a_write_follows_no_link_that_waits_under_its_name(tmp_path):
    (tmp_path / "partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "kept", "partial"):
        pass
    assert not (tmp_path / "elsewhere").exists()
