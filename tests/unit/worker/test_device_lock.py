from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from helix_jobs.errors import DeviceInUseError
from helix_jobs.worker.device_lock import DeviceLock

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
    assert "somebody removed the lock file" in caplog.text
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
