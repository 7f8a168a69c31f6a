from __future__ import annotations

import subprocess
import sys
from typing import IO, TYPE_CHECKING

import pytest

from helix_jobs import locks
from helix_jobs.errors import ConfigurationError
from helix_jobs.locks import FileLock, private_directory

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_a_file_removed_before_it_was_locked_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, original, calls = tmp_path / "lock", locks._lock, []

    def sweep_first(file: IO[str], **how: bool) -> bool:
        calls.append(1)
        if len(calls) == 1:
            path.unlink()
        return original(file, **how)

    monkeypatch.setattr(locks, "_lock", sweep_first)
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
    monkeypatch.setattr(locks, "_MEETING_PLACES", (str(tmp_path / "absent"), str(tmp_path)))
    directory = private_directory("locks")
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o777)
    with pytest.raises(ConfigurationError, match="not private"):
        private_directory("locks")
    directory.rmdir()
    directory.symlink_to(tmp_path)
    with pytest.raises(ConfigurationError, match="not private"):
        private_directory("locks")
