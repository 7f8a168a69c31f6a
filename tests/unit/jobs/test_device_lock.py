from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from helix_jobs.errors import ConfigurationError, DeviceInUseError
from helix_jobs.jobs.device_lock import DeviceLock, FileLock, private_directory

if TYPE_CHECKING:
    from pathlib import Path


def test_a_device_is_held_once(tmp_path: Path) -> None:
    first, second, other = (DeviceLock(name, tmp_path) for name in ("cuda:0", "cuda:0", "cuda:1"))
    first.acquire()
    other.acquire()
    assert first.exclusive
    assert other.exclusive
    with pytest.raises(DeviceInUseError, match=r"device cuda:0.*--allow-shared-device"):
        second.acquire()
    second.acquire(allow_shared=True)
    assert not second.exclusive
    first.release()
    second.acquire()
    assert second.exclusive
    second.release()
    other.release()


def test_who_shares_a_device_is_seen_after_its_first_worker_has_left(tmp_path: Path) -> None:
    first, sharing, later, alone = (DeviceLock("cuda:0", tmp_path) for _ in range(4))
    first.acquire()
    sharing.acquire(allow_shared=True)
    assert not first.exclusive, "a worker row naming the device may be the sharing one's"
    first.release()
    with pytest.raises(DeviceInUseError):
        alone.acquire()
    later.acquire(allow_shared=True)
    assert not later.exclusive
    sharing.release()
    assert later.exclusive
    later.release()
    alone.acquire()
    assert alone.exclusive
    alone.release()


def test_a_killed_sharer_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "device-cpu.shared-4711-abcd.lock").touch()
    lock = DeviceLock("cpu", tmp_path)
    lock.acquire()
    assert lock.exclusive
    assert [path.name for path in tmp_path.iterdir()] == ["device-cpu.lock"]
    lock.release()


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys\n"
        "from helix_jobs.jobs.device_lock import FileLock\n"
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
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = private_directory("locks")
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o777)
    with pytest.raises(ConfigurationError, match="not private"):
        private_directory("locks")
    directory.rmdir()
    directory.symlink_to(tmp_path)
    with pytest.raises(ConfigurationError, match="not private"):
        private_directory("locks")
