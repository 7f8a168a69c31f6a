from __future__ import annotations

import shutil
import subprocess
import sys
from typing import IO, TYPE_CHECKING

import pytest

from helix_jobs import locks as device_lock
from helix_jobs.errors import ConfigurationError, DeviceInUseError
from helix_jobs.locks import DeviceLock, FileLock, private_directory

if TYPE_CHECKING:
    from pathlib import Path


def taken(directory: Path) -> bool:
    """Whether a worker that wants the device for itself is refused."""
    lock = DeviceLock("cuda:0", directory)
    try:
        lock.acquire()
    except DeviceInUseError:
        return True
    lock.release()
    return False


def test_a_device_is_held_once(tmp_path: Path) -> None:
    first, second, other = (DeviceLock(name, tmp_path) for name in ("cuda:0", "cuda:0", "cuda:1"))
    first.acquire()
    other.acquire()
    with pytest.raises(DeviceInUseError, match=r"device cuda:0.*--allow-shared-device"):
        second.acquire()
    second.acquire(allow_shared=True)
    first.release()
    assert taken(tmp_path), "the sharing one is still there"
    second.release()
    assert not taken(tmp_path)
    other.release()


def test_who_shares_a_device_is_seen_after_its_first_worker_has_left(tmp_path: Path) -> None:
    first, sharing, later = (DeviceLock("cuda:0", tmp_path) for _ in range(3))
    first.acquire()
    sharing.acquire(allow_shared=True)
    first.release()
    assert taken(tmp_path)
    later.acquire(allow_shared=True)
    sharing.release()
    assert taken(tmp_path)
    later.release()
    assert not taken(tmp_path)


def test_a_killed_sharer_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "device-cpu.shared-4711-abcd.lock").touch()
    lock = DeviceLock("cpu", tmp_path)
    lock.acquire()
    assert [path.name for path in tmp_path.iterdir()] == ["device-cpu.lock"]
    lock.release()


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
@pytest.mark.parametrize("shared", [False, True])
def test_a_lock_whose_file_is_swept_away_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, shared: bool
) -> None:
    directory = tmp_path / "locks"
    first, lock = DeviceLock("cuda:0", directory), DeviceLock("cuda:0", directory)
    if shared:
        first.acquire()
    lock.acquire(allow_shared=shared)
    first.release()
    assert lock.keep()
    shutil.rmtree(directory)
    assert lock.keep()
    assert "removed by somebody" in caplog.text
    assert taken(directory)
    lock.release()
    assert not taken(directory)


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_who_came_while_the_file_was_gone_is_noticed(tmp_path: Path) -> None:
    lock, second = DeviceLock("cuda:0", tmp_path), DeviceLock("cuda:0", tmp_path)
    lock.acquire()
    (tmp_path / "device-cuda_0.lock").unlink()
    second.acquire()
    assert not lock.keep()
    second.release()
    assert lock.keep()
    assert taken(tmp_path)
    lock.release()


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_a_file_removed_before_it_was_locked_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, original, calls = tmp_path / "lock", device_lock._lock, []

    def sweep_first(file: IO[str], **how: bool) -> bool:
        calls.append(1)
        if len(calls) == 1:
            path.unlink()
        return original(file, **how)

    monkeypatch.setattr(device_lock, "_lock", sweep_first)
    lock = FileLock(path)
    assert lock.acquire()
    assert lock.is_in_place
    assert len(calls) == 2
    assert not FileLock(path).acquire()
    lock.release()
    assert not lock.is_in_place


@pytest.mark.skipif(sys.platform == "win32", reason="places of POSIX")
def test_shells_with_other_temporary_directories_and_names_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    here = private_directory("locks")
    for name in ("TMPDIR", "XDG_RUNTIME_DIR", "LOGNAME", "USER", "HOME"):
        monkeypatch.setenv(name, "/somewhere/else")
    monkeypatch.setattr("tempfile.tempdir", None)
    assert private_directory("locks") == here


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys\n"
        "from helix_jobs.locks import FileLock\n"
        "lock = FileLock(pathlib.Path(sys.argv[1]))\n"
        "assert lock.acquire(note='me')\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    lock = FileLock(path)
    assert not lock.acquire()
    assert path.read_text(encoding="utf-8") == "me", "a failed attempt leaves the note alone"
    holder.kill()
    holder.communicate()
    with lock:
        assert lock.held
    assert not lock.held


def test_taking_it_twice_is_harmless(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    assert lock.acquire()
    lock.release()
    lock.release()


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_a_directory_others_could_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_lock, "_MEETING_PLACES", (str(tmp_path / "absent"), str(tmp_path)))
    directory = private_directory("locks")
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o777)
    with pytest.raises(ConfigurationError, match="not private"):
        private_directory("locks")
    directory.rmdir()
    directory.symlink_to(tmp_path)
    with pytest.raises(ConfigurationError, match="not private"):
        private_directory("locks")
