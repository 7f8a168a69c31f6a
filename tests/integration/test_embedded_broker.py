"""The embedded broker: started once, used by many, and ended when nobody can want it any more."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from helix_jobs.broker import embedded as embedded_broker
from helix_jobs.broker import keeper as broker_keeper
from helix_jobs.broker.embedded import MAX_SOCKET_PATH, EmbeddedBroker, Presence
from helix_jobs.broker.publisher import broker_url, ping
from helix_jobs.doctor.broker import check_broker
from helix_jobs.errors import BrokerUnreachableError, ExhaustedError
from helix_jobs.locks import FileLock
from helix_jobs.settings import Settings
from helix_jobs.worker.shared_broker import leave_broker
from tests.redis_client import redis_client
from tests.worker_box import comes_true, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no embedded broker on Windows")

USER = (
    "import pathlib, sys, time\n"
    "from helix_jobs.broker.publisher import EmbeddedBroker\n"
    "broker = EmbeddedBroker(pathlib.Path(sys.argv[1]))\n"
    "broker.start()\n"
    "print('uses it', flush=True)\n"
    "time.sleep(600)\n"
)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_broker, "UNUSED_SECONDS", 3.0)
    monkeypatch.setattr(embedded_broker, "START_SECONDS", 4.0)
    monkeypatch.setattr(embedded_broker, "ANSWER_SECONDS", 0.5)


@pytest.fixture
def broker(short_tmp: Path, short_pauses: None) -> Iterator[EmbeddedBroker]:
    """One that runs and is used by this process."""
    made = EmbeddedBroker(short_tmp)
    assert made.start()
    yield made
    for process in processes(short_tmp):
        process.kill()
    made.stop()


def processes(home: Path) -> list[psutil.Process]:
    """The servers and keepers of a home."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or ())
        if f"{home}/broker/" in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def server_of(home: Path) -> psutil.Process:
    (found,) = [one for one in processes(home) if "keeper.py" not in " ".join(one.cmdline())]
    return found


def keeper_of(home: Path) -> psutil.Process:
    (found,) = [one for one in processes(home) if "keeper.py" in " ".join(one.cmdline())]
    return found


def gone(home: Path) -> bool:
    return not processes(home)


def test_a_broker_is_started_once_reused_and_stopped_by_the_last(short_tmp: Path) -> None:
    first, second = EmbeddedBroker(short_tmp), EmbeddedBroker(short_tmp)
    assert not first.is_running()
    assert not first.stop()
    assert first.start()
    try:
        assert second.is_running()
        assert not second.start(), "it runs already"
        ping(first.url)
        assert broker_url(Settings(home=short_tmp, redis_url=None, database_url="sqlite:///x")) == first.url
        assert first.socket_path.stat().st_mode & 0o777 == 0o700
        assert first.socket_path.parent.stat().st_mode & 0o777 == 0o700
        with redis_client(first.url) as client:
            found = client.config_get("maxmemory-policy", "port")
        assert found["maxmemory-policy"] == "noeviction"
        assert found["port"] == "0", "nobody outside this machine can reach it"
        assert not first.stop(), "another one uses it"
        assert second.is_running()
    finally:
        assert second.stop()
    assert not second.is_running()
    wait_until(lambda: gone(short_tmp), "its keeper lives on")
    with pytest.raises(BrokerUnreachableError, match="start it"):
        ping(first.url)


def test_a_stale_socket_is_replaced(short_tmp: Path, broker: EmbeddedBroker) -> None:
    server_of(short_tmp).kill()
    wait_until(lambda: gone(short_tmp), "the keeper outlives its server")
    assert broker.socket_path.exists()
    assert broker.presence() is Presence.ABSENT
    assert broker.start()
    assert broker.stop()


def test_a_long_home_gets_a_short_socket(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))
    home = short_tmp / ("long-" * 30)
    home.mkdir()
    broker = EmbeddedBroker(home)
    assert len(os.fsencode(broker.socket_path)) <= MAX_SOCKET_PATH
    assert EmbeddedBroker(home).socket_path == broker.socket_path
    assert broker.start()
    socket = broker.socket_path
    assert socket.exists()
    shutil.rmtree(home)
    wait_until(lambda: gone(home), "it lives on without its home")
    broker.stop()


@pytest.fixture
def user(short_tmp: Path, broker: EmbeddedBroker) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses it."""
    with subprocess.Popen([sys.executable, "-c", USER, str(short_tmp)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "uses it\n"
        yield process
        process.kill()


def test_it_outlives_a_killed_user_for_the_next_one(
    short_tmp: Path, broker: EmbeddedBroker, user: subprocess.Popen[str]
) -> None:
    assert not broker.stop(), "its other user lives"
    user.send_signal(signal.SIGKILL)
    user.wait()
    assert broker.is_running()
    assert not broker.start(), "it is taken over"
    # Longer than nobody may use it.
    assert not comes_true(lambda: gone(short_tmp), 5.5), "it ends although somebody uses it"
    assert broker.is_running()
    assert broker.stop()
    wait_until(lambda: gone(short_tmp), "its keeper lives on")


def test_it_ends_when_its_last_user_was_killed(
    short_tmp: Path, broker: EmbeddedBroker, user: subprocess.Popen[str]
) -> None:
    assert not broker.stop()
    user.send_signal(signal.SIGSTOP)
    assert not comes_true(lambda: gone(short_tmp), 5.5), "it ends although somebody uses it"
    assert broker.is_running(), "one that is frozen uses it all the same"
    user.send_signal(signal.SIGKILL)
    wait_until(lambda: gone(short_tmp), "it is left behind")
    assert not broker.socket_path.exists()


def test_it_ends_when_its_directory_is_deleted(short_tmp: Path, broker: EmbeddedBroker) -> None:
    shutil.rmtree(short_tmp / "broker")
    wait_until(lambda: gone(short_tmp), "it runs in a directory that is no more")
    assert broker.start(), "and comes back if it is wanted"
    assert broker.stop()


def test_a_log_that_has_grown_too_large_is_emptied_and_written_on(short_tmp: Path, broker: EmbeddedBroker) -> None:
    log = short_tmp / "broker" / "broker.log"
    os.truncate(log, broker_keeper.LOG_BYTES)
    changes = comes_true(lambda: log.stat().st_size != broker_keeper.LOG_BYTES, 2.5 * broker_keeper.LOOK_SECONDS)
    assert not changes, "it has room yet"
    os.truncate(log, broker_keeper.LOG_BYTES + 1)
    wait_until(lambda: log.stat().st_size == 0, "it grows for ever")
    with redis_client(broker.url) as client:
        client.config_set("loglevel", "verbose")
    wait_until(lambda: log.stat().st_size > 0, "the server writes no more")
    assert b"\0" not in log.read_bytes(), "the server goes on where it was, not at the new beginning"
    assert log.stat().st_mode & 0o777 == 0o600
    assert broker.is_running()


@pytest.mark.skipif(sys.platform != "linux", reason="no such signal elsewhere")
def test_it_does_not_outlive_its_keeper(short_tmp: Path, broker: EmbeddedBroker) -> None:
    keeper_of(short_tmp).kill()
    wait_until(lambda: gone(short_tmp), "the server is left without a keeper")


@pytest.mark.thorough
def test_a_frozen_one_is_waited_for_and_no_second_one_started(short_tmp: Path, broker: EmbeddedBroker) -> None:
    server = server_of(short_tmp)
    server.suspend()
    assert broker.presence() is Presence.SILENT
    assert not broker.is_running()
    with pytest.raises(BrokerUnreachableError, match="does not answer; wait"):
        broker.start()
    assert len(processes(short_tmp)) == 2, "one server, one keeper"
    (verdict,) = check_broker(Settings(home=short_tmp, redis_url=None, database_url="sqlite:///x"))
    assert "does not answer" in verdict.finding
    server.resume()
    assert not broker.start()
    assert broker.stop()


def test_one_that_stays_frozen_is_replaced_and_ended(
    short_tmp: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = server_of(short_tmp)
    frozen.suspend()
    monkeypatch.setattr(embedded_broker, "SILENT_SECONDS", 1.0)
    assert broker.start()
    wait_until(lambda: not frozen.is_running() or frozen.status() == psutil.STATUS_ZOMBIE, "the first one lives on")
    assert broker.is_running()
    assert len(processes(short_tmp)) == 2
    assert broker.stop()
    wait_until(lambda: gone(short_tmp), "its keeper lives on")


def test_a_frozen_one_can_be_stopped(short_tmp: Path, broker: EmbeddedBroker) -> None:
    server_of(short_tmp).suspend()
    assert not broker.stop()
    wait_until(lambda: gone(short_tmp), "it lives on")


def test_who_holds_the_start_lock_for_ever_is_named(
    short_tmp: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_broker, "START_SECONDS", 0.2)
    monkeypatch.setattr(embedded_broker, "STOP_SECONDS", 0.2)
    with FileLock(short_tmp / "broker" / "start.lock"):
        for use in (broker.start, broker.stop):
            with pytest.raises(BrokerUnreachableError, match=r"does not finish \(it holds .*start.lock\)"):
                use()
    monkeypatch.setattr(embedded_broker, "START_SECONDS", 5.0)
    assert broker.stop()


def test_a_keeper_that_takes_its_time_does_not_spoil_its_workers_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def hang(_broker: EmbeddedBroker) -> bool:
        raise subprocess.TimeoutExpired("keeper", 15.0)

    monkeypatch.setattr(EmbeddedBroker, "stop", hang)
    leave_broker(EmbeddedBroker(tmp_path))
    assert "left to its keeper" in caplog.text


def test_a_process_without_descriptors_does_not_take_it_for_silent(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would be replaced after a minute, while others use it."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(embedded_broker.socket, "socket", refuse)
        with pytest.raises(ExhaustedError, match="LimitNOFILE"):
            broker.is_running()
    assert broker.is_running()
