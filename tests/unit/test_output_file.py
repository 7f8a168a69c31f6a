"""Writing a file that a person named: what stands in its place is kept, respected or refused, never emptied."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading

import pytest

from helix_jobs.errors import ConfigurationError
from helix_jobs.output_file import written_whole

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes, owners, links and pipes of POSIX")


def write(path, content=b"new"):
    with written_whole(path) as stream:
        stream.write(content)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o4755])
def test_the_mode_of_a_replaced_file_is_kept(tmp_path, mode):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    write(path)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", mode & 0o777)


def test_nobody_may_read_a_closed_files_successor_while_it_is_written(tmp_path):
    path = tmp_path / "a"
    path.touch(0o600)
    with written_whole(path) as stream:
        assert stat.S_IMODE(os.fstat(stream.fileno()).st_mode) == 0o600


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_of_a_replaced_file_is_kept(tmp_path):
    path = tmp_path / "a"
    path.touch()
    os.chown(path, 65534, 65534)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


def test_another_name_of_the_file_keeps_what_it_had(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    write(tmp_path / "a")
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"new", b"old")


def test_a_loop_of_links_is_named(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigurationError, match="a is a loop of symbolic links; choose another place"):
        write(tmp_path / "a")


def test_a_pipe_that_nobody_reads_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("helix_jobs.output_file.PIPE_PATIENCE", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="nobody reads that pipe: start its reader first"):
        write(tmp_path / "pipe")


def test_a_pipe_whose_reader_comes_a_moment_later_is_written(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Timer(0.2, lambda: read.append(pipe.read_bytes()))
    reader.start()
    write(pipe)
    reader.join()
    assert read == [b"new"]


SCRIPT = """
import sys
from pathlib import Path
from helix_jobs.output_file import written_whole
with written_whole(Path(sys.argv[1])) as stream:
    stream.write(b"new")
"""


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1"])
def test_standard_output_by_its_name(tmp_path, name):
    command = [sys.executable, "-c", SCRIPT, name]
    assert subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout == b"new"
    log = tmp_path / "log"
    log.write_bytes(b"before ")
    with log.open("ab") as stream:
        subprocess.run(command, stdout=stream, check=True)
    assert log.read_bytes() == b"before new"


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "free some space there"), (errno.EACCES, "correct the permissions")]
)
def test_what_cannot_be_written_is_named_with_a_remedy_and_leaves_nothing(tmp_path, number, remedy):
    def fails():
        with written_whole(tmp_path / "a") as stream:
            stream.write(b"half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(ConfigurationError, match=f"a cannot be written: .*; {remedy}"):
        fails()
    assert list(tmp_path.iterdir()) == []
