"""Logs that are bounded although children write to them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from helix_jobs.errors import ConfigurationError
from helix_jobs.observability import log_file
from helix_jobs.observability.log_file import cut_log, open_log


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(log_file, "LOG_BYTES", 1000)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "worker.log"


def test_a_full_log_becomes_its_predecessor_at_the_next_start(path):
    for letter in "abc":
        with open_log(path) as log:
            log.write(letter.encode() * 1200)
    assert path.read_bytes() == b"c" * 1200
    kept = path.with_name("worker.log.1")
    assert kept.read_bytes() == b"b" * 1200
    assert len(list(path.parent.iterdir())) == 2
    if sys.platform != "win32":
        assert {file.stat().st_mode & 0o777 for file in (path, kept)} == {0o600}


def test_one_with_room_is_appended_to(path):
    for _ in range(2):
        with open_log(path) as log:
            log.write(b"a line\n")
    assert path.read_bytes() == b"a line\n" * 2


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be cut there")
def test_a_log_that_is_written_to_is_cut_and_children_go_on_at_its_beginning(path):
    with open_log(path) as log:
        log.write(b"a" * 600 + b"b" * 900)
        log.flush()
        assert cut_log(path, log.fileno())
        assert not cut_log(path, log.fileno())
        subprocess.run([sys.executable, "-c", "print('from a child')"], stdout=log, check=True)
    assert path.read_bytes() == b"from a child\n"
    kept = path.with_name("worker.log.1")
    assert kept.read_bytes() == b"a" * 100 + b"b" * 900
    assert kept.stat().st_mode & 0o777 == 0o600


def test_what_is_not_this_log_is_left_alone(path, tmp_path):
    with open_log(path) as log:
        log.write(b"a" * 1500)
    with (tmp_path / "other").open("ab") as other:
        other.write(b"b" * 1500)
        other.flush()
        assert not cut_log(path, other.fileno())
    reading, writing = os.pipe()
    assert not cut_log(path, writing)
    os.close(reading)
    os.close(writing)
    assert path.stat().st_size == 1500


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_a_link_in_its_place_is_refused(path, tmp_path):
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError):
        open_log(path)
